"""Boxes, masks, and the model frame."""
