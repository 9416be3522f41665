"""Pictures of one run, drawn with matplotlib."""
