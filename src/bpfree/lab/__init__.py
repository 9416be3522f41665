"""What one does with runs."""
