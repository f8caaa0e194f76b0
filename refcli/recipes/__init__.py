"""One function per command, readable top to bottom."""
