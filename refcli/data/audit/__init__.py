"""Overlaps between training and evaluation splits: shared images, texts, boxes and objects."""
