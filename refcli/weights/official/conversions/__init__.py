"""The conversion of each kind of official checkpoint: its tensor names, ours, and its sizes."""
