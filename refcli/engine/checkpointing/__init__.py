"""The run directory and its checkpoints: what is saved, and how training resumes from it."""
