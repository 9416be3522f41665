"""Many trainings at once, each in its own process."""
