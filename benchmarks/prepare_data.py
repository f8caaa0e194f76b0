"""Expressions per second and peak memory of prepare-data on a REFER-style corpus, beside a plain reading loop.

    python benchmarks/prepare_data.py [EXPRESSIONS] [WORKERS]

Makes `refs(unc).p` and `instances.json` with polygons in a temporary folder, prepares them as refcoco_unc without
images, and reads the same files plainly: with json and pickle in one go, then pycocotools for every expression.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import resource
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

from pycocotools import mask as coco

EXPRESSIONS_PER_REF = 3
REFS_PER_IMAGE = 2.5
ANNOTATIONS_PER_IMAGE = 10
WORDS = [
    "the",
    "left",
    "right",
    "big",
    "small",
    "red",
    "blue",
    "man",
    "woman",
    "dog",
    "car",
    "chair",
    "standing",
    "sitting",
    "front",
    "behind",
    "with",
    "hat",
]


def make_corpus(folder: Path, num_expressions: int) -> None:
    """Write a corpus of the size and shape of RefCOCO: polygons of 20 to 60 points, two parts in one of five."""
    dice = random.Random(0)
    num_refs = num_expressions // EXPRESSIONS_PER_REF
    num_images = round(num_refs / REFS_PER_IMAGE)
    images = [
        {"id": n, "file_name": f"COCO_train2014_{n:012d}.jpg", "width": 640, "height": 480} for n in range(num_images)
    ]
    annotations = []
    for number in range(num_images * ANNOTATIONS_PER_IMAGE):
        parts = [_polygon(dice) for _ in range(1 + (dice.random() < 0.2))]
        xs, ys = [x for part in parts for x in part[::2]], [y for part in parts for y in part[1::2]]
        box = [min(xs), min(ys), round(max(xs) - min(xs), 2), round(max(ys) - min(ys), 2)]
        annotations.append(
            {"segmentation": parts, "area": 1.0, "iscrowd": 0, "image_id": number // ANNOTATIONS_PER_IMAGE,
             "bbox": box, "category_id": 1, "id": number}
        )  # fmt: skip
    refs = []
    for ref in range(num_refs):
        image = int(ref / REFS_PER_IMAGE)
        texts = [" ".join(dice.choices(WORDS, k=dice.randint(2, 8))) for _ in range(EXPRESSIONS_PER_REF)]
        sentences = [
            {"tokens": text.split(), "raw": text, "sent": text, "sent_id": ref * EXPRESSIONS_PER_REF + number}
            for number, text in enumerate(texts)
        ]
        annotation = image * ANNOTATIONS_PER_IMAGE + dice.randrange(ANNOTATIONS_PER_IMAGE)
        refs.append(
            {"ref_id": ref, "ann_id": annotation, "category_id": 1, "image_id": image, "split": "train",
             "file_name": f"COCO_train2014_{image:012d}_{ref}.jpg", "sentences": sentences,
             "sent_ids": [sentence["sent_id"] for sentence in sentences]}
        )  # fmt: skip
    (folder / "refcoco").mkdir()
    (folder / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=0))
    corpus = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "refcoco" / "instances.json").write_text(json.dumps(corpus))


def _polygon(dice: random.Random) -> list[float]:
    x, y, radius = dice.uniform(120, 520), dice.uniform(120, 360), dice.uniform(20, 110)
    count = dice.randint(20, 60)
    angles = (2 * math.pi * number / count for number in range(count))
    points = [
        (x + radius * dice.uniform(0.7, 1) * math.cos(a), y + radius * dice.uniform(0.7, 1) * math.sin(a))
        for a in angles
    ]
    return [round(value, 2) for point in points for value in point]


def plain_loop(folder: Path) -> int:
    """Read everything, then rasterise for every expression."""
    refs = pickle.loads((folder / "refcoco" / "refs(unc).p").read_bytes())
    corpus = json.loads((folder / "refcoco" / "instances.json").read_text())
    annotations = {one["id"]: one for one in corpus["annotations"]}
    sizes = {one["id"]: (one["height"], one["width"]) for one in corpus["images"]}
    rows = []
    for ref in refs:
        for sentence in ref["sentences"]:
            one = annotations[ref["ann_id"]]
            mask = coco.merge(coco.frPyObjects(one["segmentation"], *sizes[ref["image_id"]]))
            rows.append((sentence["sent"], one["bbox"], mask))
    return len(rows)


def main() -> None:
    """Measure both and print the figures."""
    num_expressions = int(sys.argv[1]) if len(sys.argv) > 1 else 150_000
    workers = sys.argv[2] if len(sys.argv) > 2 else "2"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with get_context("spawn").Pool(1) as pool:  # its memory must not count as that of prepare-data
            pool.apply(make_corpus, (folder, num_expressions))
        size = sum(file.stat().st_size for file in (folder / "refcoco").iterdir())
        print(f"{num_expressions:,} expressions, {size / 1e6:.0f} MB of files")
        command = [
            sys.executable,
            "-m",
            "refcli",
            "prepare-data",
            "refcoco_unc",
            "--raw",
            name,
            "--out",
            f"{name}/store",
        ]
        start = time.perf_counter()
        process = subprocess.Popen([*command, "--workers", workers], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        assert status == 0, "prepare-data failed"
        peak = usage.ru_maxrss / 1024
        print(
            f"prepare-data: {num_expressions / seconds:,.0f} expressions/s ({seconds:.1f} s, start included), ", end=""
        )
        print(f"peak of the largest process {peak:.0f} MiB")
        start = time.perf_counter()
        plain_loop(folder)
        plain = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"plain loop: {num_expressions / plain:,.0f} expressions/s ({plain:.1f} s), peak {peak:.0f} MiB")
        print(f"ratio: {plain / seconds:.1f}")


if __name__ == "__main__":
    main()
