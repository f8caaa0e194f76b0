"""The sources of examples by name."""

SOURCES: dict[str, str] = {"synthetic": "refcli.data.sources.synthetic:write_synthetic"}
"""Each row writes pictures and splits into a store and lists them in its manifest."""
