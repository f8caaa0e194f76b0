"""Reading untrusted files: nothing in them is executed, sizes are bounded, and errors name the file."""
