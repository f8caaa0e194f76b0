"""Shared-RIS: one fusion network and one decoder shared by image and words."""
