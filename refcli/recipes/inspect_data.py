"""inspect-data: statistics of the splits of a store, and random examples drawn onto their images."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from refcli.data.reading.json_files import read_json
from refcli.data.store.read import Store, StoreSplit
from refcli.data.store.statistics import SplitStatistics, split_statistics
from refcli.drawing.encoding import encode_png
from refcli.drawing.examples import MAX_FAILURES, DrawnExample, FailedExample, draw_examples
from refcli.errors import DataError, ExitCode, UsageError
from refcli.files import path_inside, write_atomically
from refcli.inference.image_folders import is_empty_folder
from refcli.inference.output_manifest import INSPECTION, INSPECTION_SCHEMA, SHEET

MOST_ON_SHEET = 400
"""Larger sheets are too large for most viewers."""
_DRAWING = re.compile(r"[^/]+/[^/]+-\d{6,}\.png")


class _ListedDrawing(msgspec.Struct):
    file: str


class _ListedSample(msgspec.Struct):
    sheet: str | None
    drawn: list[_ListedDrawing]


class _InspectionFile(msgspec.Struct):
    schema: str
    sample: _ListedSample


@dataclass(frozen=True)
class DrawnSample:
    """The examples that were drawn."""

    folder: Path
    seed: int
    drawn: tuple[DrawnExample, ...]
    failures: tuple[FailedExample, ...]
    sheet: Path | None
    """All drawings on one sheet; None without drawings."""


@dataclass(frozen=True)
class Inspection:
    """Statistics of splits of a store, and the examples that were drawn."""

    store: Path
    splits: tuple[SplitStatistics, ...]
    sample: DrawnSample | None = None

    @property
    def exit_code(self) -> ExitCode:
        """0 if all examples were drawn, 3 if some could not be, 1 if none could."""
        if self.sample is None or not self.sample.failures:
            return ExitCode.OK
        return ExitCode.PARTIAL if self.sample.drawn else ExitCode.FAILED

    def document(self) -> dict[str, object]:
        """The JSON document; shares are fractions in 0..1, the stop of a bin without upper limit is null."""
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
    max_failures: int = MAX_FAILURES,
) -> Inspection:
    """Compute statistics of splits of a store, and draw random examples of each.

    Args:
        path: the store.
        splits: "dataset:split" names; None for all.
        num_samples: number of examples of each split to draw; None for none.
        out: the folder for the drawings.
        seed: the seed of the random choice, which does not depend on the other splits.
        force: replace the drawings of an earlier call in `out`, and nothing else.
        max_failures: stop drawing a split after this many failures.

    Raises:
        UsageError: a split is named twice, only one of `num_samples` and `out` is given, there are too many drawings,
            or the folder is not empty.
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
    sample = _draw_sample(opened, num_samples, out=out, seed=seed, max_failures=max_failures)
    inspection = Inspection(path, statistics, sample)
    write_atomically(out / INSPECTION, (json.dumps(inspection.document(), indent=2) + "\n").encode())
    return inspection


def _draw_sample(
    splits: Sequence[StoreSplit], num_samples: int, *, out: Path, seed: int, max_failures: int
) -> DrawnSample:
    drawings = draw_examples(splits, num_samples, out=out, seed=seed, max_failures=max_failures)
    sheet = None
    if drawings.sheet is not None:
        sheet = out / SHEET
        write_atomically(sheet, encode_png(drawings.sheet))
    return DrawnSample(out, seed, drawings.drawn, drawings.failures, sheet)


def _check_sampling(num_samples: int | None, out: Path | None, num_splits: int) -> None:
    if (num_samples is None) != (out is None):
        missing, given = ("--out", "--sample") if out is None else ("--sample", "--out")
        raise UsageError(
            f"{given} needs {missing}", where=missing, hint="refcli inspect-data STORE --sample 8 --out DIR"
        )
    if num_samples is None:
        return
    if num_samples < 1:
        raise UsageError("a sample needs at least one example", where="--sample")
    if num_samples * num_splits > MOST_ON_SHEET:
        raise UsageError(
            f"{num_samples} examples of each of {num_splits} splits are more than the {MOST_ON_SHEET} "
            "that fit on a sheet",
            where="--sample",
            hint="ask for fewer, or for some of the splits with --split",
        )


def _check_free(out: Path, *, force: bool) -> None:
    """Check that no file of the user would be replaced.

    Raises:
        UsageError: the folder is not empty; with `force`, it has no drawings of an earlier call.
    """
    if not out.is_dir():
        return
    if is_empty_folder(out) or (force and _earlier(out)):
        return
    hint = "choose another --out" + (", or replace the drawings with --force" if _earlier(out) else "")
    raise UsageError("the folder for the drawings is not empty", where=f"--out {out}", hint=hint)


def _earlier(out: Path) -> list[Path]:
    """The files that an earlier call has written into a folder, its list first; empty without a list."""
    path = path_inside(out, INSPECTION)
    if path is None or not path.is_file():
        return []
    try:
        listed = read_json(path, _InspectionFile)
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
