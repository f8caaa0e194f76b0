"""MRefM: Mask Referring Modelling, the pre-training of OneRef."""
