"""Typed settings: the schema, the presets, and how both become one checked object."""
