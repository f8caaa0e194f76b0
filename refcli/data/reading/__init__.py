"""Reading files that strangers wrote: nothing in them is run, sizes are bounded, and every refusal names the file."""
