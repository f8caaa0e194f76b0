"""Data sets: sources, preparation, the store, audits, and training samples."""
