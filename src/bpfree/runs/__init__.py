"""From a config to a folder on disk and back: configs, run folders, checkpoints, resume."""
