"""One module per kind of official checkpoint: its tensor names and ours."""
