"""The losses, each under its usual name."""
