"""One reader for each data set, and readers for the user's own files."""
