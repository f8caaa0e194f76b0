"""An Answer as a line or a file of another program, and back."""
