"""inspect-data: the figures of a store's splits, and random examples of them drawn onto their images."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from refcli.contracts.example import Example
from refcli.contracts.prediction import Answer, Target
from refcli.data.reading.images import open_scaled
from refcli.data.reading.json_files import read_json
from refcli.data.store.read import Store, StoreSplit
from refcli.data.store.statistics import SplitStatistics, split_statistics
from refcli.drawing.colours import PAPER
from refcli.drawing.contact_sheet import GUTTER, as_cell, contact_sheet
from refcli.drawing.encoding import encode_png
from refcli.drawing.overlays import draw_answer
from refcli.errors import DataError, ExitCode, RefcliError, UsageError
from refcli.files import path_inside, write_atomically
from refcli.inference.image_folders import SYSTEM_NAMES
from refcli.inference.output_manifest import INSPECTION, INSPECTION_SCHEMA, SHEET

_DRAWING = re.compile(r"[^/]+/[^/]+-\d{6,}\.png")
COLUMNS = 4
CELL_WIDTH = 420
"""Drawings in a row of the sheet, and pixels of each."""
MOST_ON_SHEET = 400
"""A sheet of more drawings is too large for most viewers."""
MOST_REPLACED = 50
"""A split in which so many examples could not be drawn is given up."""
TRUTH = "truth"
"""Stands where the name of the weights stands in an answer."""


class _Listed(msgspec.Struct):
    file: str


class _ListedSample(msgspec.Struct):
    sheet: str | None
    drawn: list[_Listed]


class _List(msgspec.Struct):
    schema: str
    sample: _ListedSample


@dataclass(frozen=True)
class DrawnExample:
    """An example on its image."""

    split: str
    row: int
    """Its index in the split."""
    id: str
    expression: str
    file: str
    """The drawing, relative to the folder."""


@dataclass(frozen=True)
class Failure:
    """An example that could not be drawn."""

    split: str
    row: int
    id: str
    error: str


@dataclass(frozen=True)
class Sample:
    """What was drawn."""

    folder: Path
    seed: int
    drawn: tuple[DrawnExample, ...]
    failures: tuple[Failure, ...]
    sheet: Path | None
    """None if there was nothing to put onto it."""


@dataclass(frozen=True)
class Inspection:
    """The figures of some splits of a store, and what was drawn of them."""

    store: Path
    splits: tuple[SplitStatistics, ...]
    sample: Sample | None = None

    @property
    def exit_code(self) -> ExitCode:
        """0 where all that was asked for was drawn, 3 where some could not be, 1 where nothing could."""
        if self.sample is None or not self.sample.failures:
            return ExitCode.OK
        return ExitCode.PARTIAL if self.sample.drawn else ExitCode.FAILED

    def document(self) -> dict[str, object]:
        """All of it as a JSON object; shares are fractions in 0..1, a bin without an upper limit stops at null."""
        sample = self.sample
        return {
            "schema": INSPECTION_SCHEMA,
            "store": str(self.store),
            "splits": {
                split.name: {key: value for key, value in asdict(split).items() if key != "name"}
                for split in self.splits
            },
            "sample": None
            if sample is None
            else {
                "folder": str(sample.folder),
                "seed": sample.seed,
                "sheet": None if sample.sheet is None else sample.sheet.name,
                "drawn": [asdict(example) for example in sample.drawn],
                "failures": [asdict(failure) for failure in sample.failures],
            },
        }


def inspect_data(
    path: Path,
    splits: Sequence[str] | None = None,
    *,
    num_samples: int | None = None,
    out: Path | None = None,
    seed: int = 0,
    force: bool = False,
) -> Inspection:
    """Measure splits of a store, and draw random examples of each.

    Args:
        path: the store.
        splits: "dataset:split" names; None for all.
        num_samples: how many examples of each split to draw; None: none.
        out: the folder for the drawings.
        seed: other seeds choose other examples; the choice in one split does not depend on the other splits.
        force: replace the drawings of an earlier call in `out`, and nothing else.

    Raises:
        UsageError: a split is named twice, the drawings have no folder or the folder no drawings, they are too many, or
            the folder is not empty.
        DataError: there is no such store or split.
    """
    store = Store(path)
    names = list(splits) if splits else store.complete_names()
    if len(set(names)) < len(names):
        raise UsageError(f"a split is named twice: {', '.join(names)}", where="--split")
    if not names:
        raise DataError("the store has no splits", where=str(path), hint="prepare some data first")
    _check_sampling(num_samples, out, len(names))
    opened = [store.split(name) for name in names]
    if out is not None:
        _check_free(out, force=force)
    statistics = tuple(split_statistics(split) for split in opened)
    if num_samples is None or out is None:
        return Inspection(path, statistics)
    if force:
        _remove_earlier(out)
    inspection = Inspection(path, statistics, draw_sample(opened, num_samples, out=out, seed=seed))
    write_atomically(out / INSPECTION, (json.dumps(inspection.document(), indent=2) + "\n").encode())
    return inspection


def draw_sample(splits: Sequence[StoreSplit], num_samples: int, *, out: Path, seed: int) -> Sample:
    """Draw random examples of each split into `<out>/<dataset>/<split>-<row>.png`, and all of them on one sheet.

    An example that cannot be drawn is replaced by the next one of the random order, `MOST_REPLACED` times in a split.

    Raises:
        UsageError: the folder cannot be made, or the folder of a data set in it is a link.
    """
    drawn: list[DrawnExample] = []
    failures: list[Failure] = []
    sections: list[Image.Image] = []
    for split in splits:
        dataset, name = split.name.rsplit(":", 1)
        _make_folder(out, dataset)
        cells: list[Image.Image] = []
        num_failed = 0
        for row in _random_order(split, seed):
            if len(cells) == num_samples or num_failed == MOST_REPLACED:
                break
            example = split[row]
            try:
                drawing = draw_example(split, example)
            except RefcliError as error:
                num_failed += 1
                failures.append(Failure(split.name, row, example.id, _one_line(error)))
                continue
            file = f"{dataset}/{name}-{row:06d}.png"
            write_atomically(out / file, encode_png(drawing))
            drawn.append(DrawnExample(split.name, row, example.id, example.expression, file))
            cells.append(as_cell(drawing, CELL_WIDTH))  # the large drawing is not kept
        if cells:
            title = f"{split.name}: {len(cells)} of {len(split):,} examples, seed {seed}"
            sections.append(contact_sheet(cells, columns=COLUMNS, cell_width=CELL_WIDTH, title=title))
    if not sections:
        return Sample(out, seed, (), tuple(failures), None)
    write_atomically(out / SHEET, encode_png(_stacked(sections)))
    return Sample(out, seed, tuple(drawn), tuple(failures), out / SHEET)


def draw_example(split: StoreSplit, example: Example) -> Image.Image:
    """The image of an example with its regions and its expression.

    Raises:
        ImageError: the image is missing or cannot be read.
        DataError: the image is not of the size that the store states, its path leaves the image root, or a mask is
            damaged.
    """
    path = split.image_path(example)
    read = open_scaled(path)
    width, height = read.width, read.height
    if example.width and example.height and (width, height) != (example.width, example.height):
        raise DataError(
            f"the image is {width} x {height}, the store says {example.width} x {example.height}",
            where=str(path),
            hint="boxes and masks would not fit; prepare the data again from these images",
        )
    return draw_answer(np.asarray(read.image), _truth(example, width, height), is_truth=True)


def _truth(example: Example, width: int, height: int) -> Answer:
    """What a perfect and perfectly certain model would answer."""
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


def _check_sampling(num_samples: int | None, out: Path | None, num_splits: int) -> None:
    if (num_samples is None) != (out is None):
        missing, given = ("--out", "--sample") if out is None else ("--sample", "--out")
        raise UsageError(
            f"{given} needs {missing}", where=missing, hint="refcli inspect-data STORE --sample 8 --out DIR"
        )
    if num_samples is None:
        return
    if num_samples < 1:
        raise UsageError("a sample needs an example", where="--sample")
    if num_samples * num_splits > MOST_ON_SHEET:
        raise UsageError(
            f"{num_samples} examples of each of {num_splits} splits are more than the {MOST_ON_SHEET} "
            "that fit on a sheet",
            where="--sample",
            hint="ask for fewer, or for some of the splits with --split",
        )


def _check_free(out: Path, *, force: bool) -> None:
    """Make sure that no file of the user's is replaced.

    Raises:
        UsageError: the folder holds something; with `force`, something that no earlier call has drawn.
    """
    if not out.is_dir():
        return
    is_empty = all(entry.name.lower() in SYSTEM_NAMES for entry in out.iterdir())
    if is_empty or (force and _earlier(out)):
        return
    hint = "choose another --out" + (", or replace the drawings with --force" if _earlier(out) else "")
    raise UsageError("the folder for the drawings is not empty", where=f"--out {out}", hint=hint)


def _earlier(out: Path) -> list[Path]:
    """The files that an earlier call has written into a folder, its list first; none where there is no such list."""
    path = path_inside(out, INSPECTION)
    if path is None or not path.is_file():
        return []
    try:
        listed = read_json(path, _List)
    except DataError:
        return []
    if listed.schema != INSPECTION_SCHEMA:
        return []
    names = [one.file for one in listed.sample.drawn if _DRAWING.fullmatch(one.file)]
    inside = [path_inside(out, name) for name in (*names, *([SHEET] if listed.sample.sheet == SHEET else []))]
    return [path, *(one for one in inside if one is not None and one.is_file())]


def _remove_earlier(out: Path) -> None:
    for path in reversed(_earlier(out)):
        path.unlink(missing_ok=True)


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


def _one_line(error: RefcliError) -> str:
    return f"{error.message} ({error.where})" if error.where else error.message


def _stacked(sections: Sequence[Image.Image]) -> Image.Image:
    """Sheets one below the other, on one paper."""
    size = max(section.width for section in sections), sum(section.height for section in sections)
    sheet = Image.new("RGB", (size[0], size[1] + GUTTER * (len(sections) - 1)), PAPER)
    top = 0
    for section in sections:
        sheet.paste(section, (0, top))
        top += section.height + GUTTER
    return sheet
