"""The sources of examples by name."""

SOURCES: dict[str, str] = {
    "refer": "refcli.data.sources.refer:SOURCE",
    "grefcoco": "refcli.data.sources.grefcoco:SOURCE",
    "referit": "refcli.data.sources.referit:SOURCE",
    "flickr": "refcli.data.sources.flickr:SOURCE",
    "pth": "refcli.data.sources.pth.read:SOURCE",
    "coco": "refcli.data.sources.coco.grounding:SOURCE",
    "odvg": "refcli.data.sources.odvg:SOURCE",
    "jsonl": "refcli.data.sources.jsonl:SOURCE",
}
"""Formats that are read from files: each row is a `Source`."""

GENERATORS: dict[str, str] = {"synthetic": "refcli.data.sources.synthetic:write_synthetic"}
"""Data sets that are made, pictures and all: each row writes splits into a store and lists them in its manifest."""
