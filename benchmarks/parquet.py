"""Expressions per second and peak memory of prepare-data on Parquet, and images extracted or read by row.

    python benchmarks/parquet.py [ROWS ...]

Writes refs in the layout of jxu124/refcoco (no images, polygons of 20 to 60 points) into a temporary folder, and
prepares them on one core: 100,000 and 1,000,000 rows unless others are given. Then the same with 100,000 long
expressions with a box each, in the layout of Ref-L4. Then writes 2,000 JPEGs of 640 x 480 into one Parquet file in row
groups of 100, extracts them, and reads 500 at random: as files, and by their row.
"""

from __future__ import annotations

import io
import json
import math
import os
import platform
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from refcli.data.preparation.dataset_images import extract_content
from refcli.data.preparation.plan import plan_file
from refcli.data.sources.image_names import stored_image
from refcli.data.sources.parquet.images import RowImage, StoredImages
from refcli.recipes.prepare_data import Preparation, prepare

ROWS = (100_000, 1_000_000)
SENTENCES = 3
ROWS_PER_FILE = 100_000
ROWS_PER_GROUP = 1_000
"""As the library `datasets` writes them."""
NUM_IMAGES, NUM_READ, IMAGES_PER_GROUP = 2_000, 500, 100
WORDS = [f"word{number}" for number in range(18)]


def ref_rows(numbers: range) -> Iterator[dict[str, Any]]:
    """Refs of invented objects, two per image."""
    for number in numbers:
        dice = random.Random(number)
        x, y = 100 + 400 * dice.random(), 100 + 240 * dice.random()
        count = dice.randint(20, 60)
        angles = [2 * math.pi * k / count for k in range(count)]
        polygon = [round(side, 2) for angle in angles for side in (x + 80 * math.cos(angle), y + 60 * math.sin(angle))]
        box = [min(polygon[::2]), min(polygon[1::2])]
        box += [max(polygon[::2]) - box[0], max(polygon[1::2]) - box[1]]
        annotation = {"id": number, "bbox": box, "segmentation": [polygon], "iscrowd": 0, "area": 1.0}
        texts = [" ".join(dice.choices(WORDS, k=4)) for _ in range(SENTENCES)]
        sentences = [
            {"raw": text, "sent": text, "sent_id": SENTENCES * number + k, "tokens": text.split()}
            for k, text in enumerate(texts)
        ]
        yield {
            "ref_id": number, "ann_id": number, "image_id": number // 2, "split": "train", "sentences": sentences,
            "bbox": box, "raw_anns": json.dumps(annotation), "raw_image_info": '{"width": 640, "height": 480}',
        }  # fmt: skip


def write_refs(folder: Path, num_rows: int) -> None:
    """Write the rows into as many files as the Hub would have; the files differ in their ids only."""
    total = math.ceil(num_rows / ROWS_PER_FILE)
    rows = pa.Table.from_pylist(list(ref_rows(range(min(num_rows, ROWS_PER_FILE)))))
    for part in range(total):
        table = rows.slice(0, num_rows - part * ROWS_PER_FILE)
        for column in ("ref_id", "image_id"):
            index = table.schema.get_field_index(column)
            table = table.set_column(index, column, pc.add(table[column], part * ROWS_PER_FILE))
        pq.write_table(table, folder / f"train-{part:05d}-of-{total:05d}.parquet", row_group_size=ROWS_PER_GROUP)


def write_long_expressions(folder: Path, num_rows: int) -> None:
    """Write rows in the layout of Ref-L4: one expression of 24 words, and a box without a mask."""
    dice = random.Random(0)
    rows = [
        {
            "id": number, "caption": " ".join(dice.choices(WORDS, k=24)), "bbox": [10.0, 20.0, 300.5, 200.25],
            "bbox_area": 60175.1, "bbox_id": f"coco_{number}", "ori_category_id": "refcoco_1", "height": 480,
            "image_id": f"coco_{number // 4}", "width": 640, "file_name": f"COCO_train2014_{number // 4:012d}.jpg",
            "is_rewrite": 0, "split": "val",
        }
        for number in range(num_rows)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / "ref-l4-val.parquet")


class Cost(NamedTuple):
    """What a preparation took."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


def prepare_refs(folder: Path) -> Cost:
    """Prepare a folder of refs."""
    start, cpu_start = time.perf_counter(), time.process_time()
    prepare(plan_file(folder / "raw", name="refs"), Preparation(out=folder / "store"))
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return Cost(seconds, cpu_seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def write_images(path: Path) -> None:
    """Write noisy JPEGs of about 100 kB."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(NUM_IMAGES):
        small = Image.fromarray(generator.integers(0, 256, (120, 160, 3), dtype=np.uint8))
        content = io.BytesIO()
        small.resize((640, 480), Image.Resampling.BICUBIC).save(content, "JPEG", quality=90)
        rows.append({"image": {"bytes": content.getvalue(), "path": f"{number}.jpg"}})
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=IMAGES_PER_GROUP)


def compare_images(folder: Path) -> None:
    """Print what extracting costs, and reading an image as a file or by its row."""
    path = folder / "images.parquet"
    write_images(path)
    places = [RowImage(StoredImages(path, "image.bytes"), *divmod(row, IMAGES_PER_GROUP)) for row in range(NUM_IMAGES)]
    images = StoredImages(path, "image.bytes")
    in_order = [RowImage(images, one.group, one.row) for one in places]
    start = time.perf_counter()
    files = [extract_content(stored_image(one, None, dataset="x"), one, folder / "extracted") for one in in_order]
    seconds = time.perf_counter() - start
    size = sum(file.stat().st_size for file in files)
    print(f"extract: {NUM_IMAGES / seconds:,.0f} images/s of {size / NUM_IMAGES / 1e3:.0f} kB ({size / 1e6:.0f} MB)")
    chosen = random.Random(0).sample(range(NUM_IMAGES), NUM_READ)
    for name, read in (("as a file", lambda row: files[row].read_bytes()), ("by its row", lambda row: places[row]())):
        start = time.perf_counter()
        for row in chosen:
            read(row)
        print(f"read at random {name}: {1e3 * (time.perf_counter() - start) / NUM_READ:.2f} ms")


def in_new_process(function: Callable[..., Any], *arguments: object) -> Any:
    """The result of a function in a process of its own: a process counts the memory of the one that starts it."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def measure(what: str, write: Callable[[Path, int], None], num_rows: int, num_expressions: int) -> None:
    """Print the cost of preparing the rows that a function writes, in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "raw").mkdir()
        in_new_process(write, folder / "raw", num_rows)
        cost = in_new_process(prepare_refs, folder)
    print(
        f"{what}, {num_rows:,} rows, {num_expressions:,} expressions: {num_expressions / cost.seconds:,.0f}/s, "
        f"{num_expressions / cost.cpu_seconds:,.0f} per CPU second, peak {cost.peak_mb:,.0f} MB",
        flush=True,
    )


def main() -> None:
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for num_rows in [int(word) for word in sys.argv[1:]] or ROWS:
        measure("refs with polygons", write_refs, num_rows, SENTENCES * num_rows)
    measure("long expressions with boxes", write_long_expressions, ROWS[0], ROWS[0])
    with tempfile.TemporaryDirectory() as name:
        compare_images(Path(name))


if __name__ == "__main__":
    main()
