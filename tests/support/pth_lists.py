"""Small lists of TransVG and OneRef, and a function that reads them."""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest

from refcli.data.sources.pth.reader import SOURCE, PthSettings
from refcli.data.sources.record import Problems, RawRecord

REALDATA = os.environ.get("REFCLI_REALDATA", "")


needs_real_data = pytest.mark.skipif(not REALDATA or not Path(REALDATA).is_dir(), reason="REFCLI_REALDATA is not set")


COCO = "COCO_train2014_000000508281.jpg"


XYWH = [300.5, 20.0, 10.25, 30.0]  # read as corners, it ends left of where it begins


TRANSVG = (COCO, "511688.pth", XYWH, "lower left boy", [("r1", ["boy"]), ("r2", ["none"])])


POLYGONS = [[300.5, 20.0, 310.75, 20.0, 310.75, 50.0]]


ONEREF = (COCO, {"height": 480, "width": 640}, XYWH, "lower left boy", POLYGONS)


REFERIT = ("8756.jpg", "8756_2.pth", [0, 10, 479, 99], "sunray at very top", [("r1", ["sunray"])])


FLICKR = ("1000092795.jpg", [158, 0, 260, 372], "two young guys")


MIXUP_REFERIT = ("8756.jpg", "referit", [300, 10, 179, 89], "sunray", "placeholder")


MIXUP_FLICKR = ["1000092795.jpg", "flickr", [158, 0, 102, 372], "two young guys", "placeholder"]


def torch_list(rows: object) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(rows, protocol=2))
        file.writestr("archive/version", "3\n")
    return buffer.getvalue()


def legacy(rows: object) -> bytes:
    head = b"".join(pickle.dumps(one, protocol=2) for one in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    return head + pickle.dumps(rows, protocol=4) + pickle.dumps([], protocol=2)


def read(
    folder: Path, rows: object, *, instances: dict[str, object] | None = None, **settings: object
) -> tuple[list[RawRecord], Problems]:
    """The records and problems of a list that is written to `<folder>/set_val.pth`."""
    files = {"val": folder / "set_val.pth"}
    files["val"].write_bytes(torch_list(rows))
    if instances is not None:
        files["instances"] = folder / "instances.json"
        files["instances"].write_text(json.dumps(instances))
    problems = Problems()
    return list(SOURCE.read(files, PthSettings(**settings), dataset="mine", problems=problems)), problems


def instances_of(*annotations: dict[str, object]) -> dict[str, object]:
    images = [{"id": 508281, "file_name": COCO, "width": 640, "height": 480}]
    return {"images": images, "annotations": list(annotations), "categories": []}


def annotation(number: int, *, image: int = 508281, box: list[float] = XYWH) -> dict[str, object]:
    fields = {"segmentation": POLYGONS, "category_id": 1, "iscrowd": 0}
    return {"id": number, "image_id": image, "bbox": box, **fields}
