"""The sources of examples by name."""

SOURCES: dict[str, str] = {
    "refer": "refcli.data.sources.refcoco:SOURCE",
    "grefcoco": "refcli.data.sources.grefcoco:SOURCE",
    "arefcoco": "refcli.data.sources.arefcoco:SOURCE",
    "cris": "refcli.data.sources.cris:SOURCE",
    "vlm_r1": "refcli.data.sources.vlm_r1:SOURCE",
    "d_cube": "refcli.data.sources.d_cube:SOURCE",
    "referit": "refcli.data.sources.referit:SOURCE",
    "flickr": "refcli.data.sources.flickr:SOURCE",
    "pth": "refcli.data.sources.pth.reader:SOURCE",
    "coco": "refcli.data.sources.coco.grounding:SOURCE",
    "odvg": "refcli.data.sources.odvg:SOURCE",
    "jsonl": "refcli.data.sources.jsonl:SOURCE",
    "parquet": "refcli.data.sources.parquet.reader:SOURCE",
    "gseval": "refcli.data.sources.gseval:SOURCE",
    "humanref": "refcli.data.sources.humanref:SOURCE",
    "openref": "refcli.data.sources.openref:SOURCE",
    "reasonseg": "refcli.data.sources.reasonseg:SOURCE",
    "sk_vg": "refcli.data.sources.sk_vg:SOURCE",
    "yolo": "refcli.data.sources.yolo:SOURCE",
    "voc": "refcli.data.sources.voc:SOURCE",
    "cvat": "refcli.data.sources.cvat:SOURCE",
    "labelme": "refcli.data.sources.labelme:SOURCE",
    "label_studio": "refcli.data.sources.label_studio:SOURCE",
    "mmr": "refcli.data.sources.mmr:SOURCE",
    "llava": "refcli.data.sources.llava:SOURCE",
    "rex_tsv": "refcli.data.sources.rex_tsv:SOURCE",
}
"""Formats read from files: each row is a `Source`."""

GENERATORS: dict[str, str] = {"synthetic": "refcli.data.sources.synthetic:write_synthetic"}
"""Generated data sets: each row renders images, writes splits into a store and lists them in its manifest."""
