"""Prepare a data set: plan, read, check, repair, store."""
