"""Examples of a store, drawn onto their images."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from refcli.contracts.example import Example
from refcli.contracts.prediction import Answer, Target
from refcli.data.reading.images import open_scaled
from refcli.data.store.read import StoreSplit
from refcli.drawing.contact_sheet import as_cell, contact_sheet, stack
from refcli.drawing.encoding import encode_png
from refcli.drawing.overlays import draw_answer
from refcli.errors import DataError, RefcliError, UsageError
from refcli.files import path_inside, write_atomically

COLUMNS = 4
CELL_WIDTH = 420
"""Drawings in a row of the sheet, and the width of each in pixels."""
MAX_FAILURES = 50
"""Number of failures after which drawing of a split stops."""
TRUTH = "truth"
"""Takes the place of the name of the weights in an answer."""


@dataclass(frozen=True)
class DrawnExample:
    """An example that was drawn."""

    split: str
    row: int
    """Its index in the split."""
    id: str
    expression: str
    file: str
    """The drawing, relative to the folder."""


@dataclass(frozen=True)
class FailedExample:
    """An example that could not be drawn."""

    split: str
    row: int
    id: str
    error: str


@dataclass(frozen=True)
class ExampleDrawings:
    """The result of `draw_examples`."""

    drawn: tuple[DrawnExample, ...]
    failures: tuple[FailedExample, ...]
    sheet: Image.Image | None
    """All drawings on one sheet; None without drawings."""


def draw_examples(
    splits: Sequence[StoreSplit], num_examples: int, *, out: Path, seed: int, max_failures: int = MAX_FAILURES
) -> ExampleDrawings:
    """Draw random examples of each split into `<out>/<dataset>/<split>-<row>.png`.

    An example that cannot be drawn is replaced by the next one of the random order, up to `max_failures` times in a
    split.

    Raises:
        UsageError: the folder cannot be created, or the folder of a data set in it is a link.
    """
    drawn: list[DrawnExample] = []
    failures: list[FailedExample] = []
    sections: list[Image.Image] = []
    for split in splits:
        dataset, name = split.name.rsplit(":", 1)
        _make_folder(out, dataset)
        cells: list[Image.Image] = []
        num_failed = 0
        for row in _random_order(split, seed):
            if len(cells) == num_examples or num_failed == max_failures:
                break
            example = split[row]
            try:
                drawing = draw_example(split, example)
            except RefcliError as error:
                num_failed += 1
                message = f"{error.message} ({error.where})" if error.where else error.message
                failures.append(FailedExample(split.name, row, example.id, message))
                continue
            file = f"{dataset}/{name}-{row:06d}.png"
            write_atomically(out / file, encode_png(drawing))
            drawn.append(DrawnExample(split.name, row, example.id, example.expression, file))
            cells.append(as_cell(drawing, CELL_WIDTH))  # much smaller than the drawing
        if cells:
            title = f"{split.name}: {len(cells)} of {len(split):,} examples, seed {seed}"
            sections.append(contact_sheet(cells, columns=COLUMNS, cell_width=CELL_WIDTH, title=title))
    return ExampleDrawings(tuple(drawn), tuple(failures), stack(sections) if sections else None)


def draw_example(split: StoreSplit, example: Example) -> Image.Image:
    """The image of an example with its regions and its expression.

    Raises:
        ImageError: the image is missing or cannot be read.
        DataError: the image has another size than the store states, its path leaves the image root, or a mask is
            damaged.
    """
    path = split.image_path(example)
    read = open_scaled(path)
    width, height = read.width, read.height
    if example.width and example.height and (width, height) != (example.width, example.height):
        raise DataError(
            f"the image is {width} x {height}, the store states {example.width} x {example.height}",
            where=str(path),
            hint="boxes and masks would not fit; prepare the data again from these images",
        )
    return draw_answer(np.asarray(read.image), answer_of(example, width, height), is_truth=True)


def answer_of(example: Example, width: int, height: int) -> Answer:
    """The truth of an example as an answer with scores of 1, for an image of this size."""
    return Answer(
        id=example.id,
        image=example.image,
        expression=example.expression,
        width=width,
        height=height,
        targets=tuple(Target(region.box_xyxy, 1.0, region.mask) for region in example.regions),
        no_target=not example.regions,
        no_target_score=None,
        weights=TRUTH,
    )


def _make_folder(out: Path, dataset: str) -> None:
    folder = path_inside(out, dataset)
    if folder is None:
        raise UsageError("a link leads out of the folder", where=f"--out {out / dataset}", hint="name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the folder cannot be made: {error.strerror}", where=f"--out {folder}") from error


def _random_order(split: StoreSplit, seed: int) -> list[int]:
    """The rows of a split, shuffled by the seed and the split's name."""
    generator = np.random.default_rng([seed, zlib.crc32(split.name.encode())])
    order: list[int] = generator.permutation(len(split)).tolist()
    return order
