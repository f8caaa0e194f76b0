"""Expressions about labelled boxes, written from classes, positions, sizes and colours, with certain targets."""
