"""Official checkpoints: read without running anything in them, renamed, and converted."""
