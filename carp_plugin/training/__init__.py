"""A run: Lightning's trainer, checkpoints, resuming, what watches it, and what it reports."""
