"""The run directory, its checkpoints, and resuming from them."""
