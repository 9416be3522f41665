"""A single training in memory: the trainer, its loop, optimisers, number types and evaluation."""
