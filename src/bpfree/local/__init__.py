"""What local rules share: where a net is cut, heads that read segments, and feedback matrices."""
