"""Readers: one for each published data set, and readers for the user's own files."""
