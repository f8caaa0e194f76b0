"""The training engine: one loop, its optimiser and schedule, checkpoints and the run directory."""
