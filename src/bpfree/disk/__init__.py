"""Files on disk: paths that a user gives, plain text read within limits, and atomic writes."""
