"""Official checkpoints: read without executing code in them, and converted to weights directories."""
