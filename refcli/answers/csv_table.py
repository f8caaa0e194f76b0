"""Answers as a CSV table, one row per target."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from refcli.answers.written import Written, usable
from refcli.contracts.prediction import Answer
from refcli.files import open_atomically
from refcli.geometry.masks import rle_area

FILE = "predictions.csv"
COLUMNS = ("id", "image", "width", "height", "expression", "no_target", "score", "x1", "y1", "x2", "y2", "mask_area")
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""Spreadsheet programs run texts that start with these as formulas."""


def write_csv(answers: Iterable[Answer], out: Path, *, min_score: float = 0.0) -> Written:
    """Write `predictions.csv`: a row per target, and one with empty numbers per answer without a target.

    Args:
        answers: in any order; those with an error are left out.
        out: an existing folder.
        min_score: minimum score of the written targets.
    """
    written = Written([FILE])
    with open_atomically(out / FILE) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
        table = csv.writer(text)
        table.writerow(COLUMNS)
        for answer in usable(answers, written, min_score=min_score):
            table.writerows(_rows(answer))
        text.detach()
    return written


def _rows(answer: Answer) -> Iterator[tuple[object, ...]]:
    start = (
        _text(answer.id),
        _text(answer.image),
        answer.width,
        answer.height,
        _text(answer.expression),
        not answer.targets,
    )
    if not answer.targets:
        yield (*start, *[""] * (len(COLUMNS) - len(start)))
    for target in answer.targets:
        area = rle_area(target.mask) if target.mask else ""
        yield (*start, f"{target.score:.5f}", *(f"{side:.2f}" for side in target.box_xyxy), area)


def _text(text: str) -> str:
    """The text with an apostrophe in front where a spreadsheet would run it."""
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text
