"""Weights directories: read, written, checked, downloaded and converted."""
