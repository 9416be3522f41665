"""Everything that local rules share: cuts of a net, heads that read segments, and feedback matrices."""
