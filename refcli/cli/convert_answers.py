"""`refcli convert-answers`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refcli.answers.table import WRITERS
from refcli.cli.options import IMAGE_URL_NOTE, ImageURL
from refcli.cli.output import log, printable

if TYPE_CHECKING:
    from refcli.recipes.convert_answers import Conversion

MOST_LISTED = 20


def command(
    file: Annotated[Path, typer.Argument(help="Prediction lines, such as OUT/predictions.jsonl.", metavar="FILE")],
    to: Annotated[str, typer.Option("--to", help=f"One of: {', '.join(WRITERS)}.", metavar="FORMAT")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A new or empty folder for the files.", metavar="FOLDER")],
    min_score: Annotated[
        float, typer.Option("--min-score", help="Leave out targets with a lower score.", min=0.0, max=1.0)
    ] = 0.0,
    outlines: Annotated[
        bool, typer.Option("--outlines", help="yolo: the outline of each mask instead of its box.")
    ] = False,
    image_url: ImageURL = None,
) -> None:
    """Convert a prediction file to the format of another tool.

    coco: one JSON file with run-length masks; yolo: label files; label-studio: pre-annotated tasks; labelme: a JSON
    file per image; cvat: XML ("images 1.1"); fiftyone: samples.json; csv: a table; odvg and refcli-data: training data
    (pseudo-labels). Exit code 3: some lines or answers could not be converted (they are listed).
    """
    from refcli.errors import ExitCode
    from refcli.recipes.convert_answers import convert_answers

    done = convert_answers(file, to, out, min_score=min_score, outlines=outlines, image_url=image_url)
    log_conversion(done, out)
    if to == "label-studio" and image_url is None:
        log(IMAGE_URL_NOTE)
    if done.exit_code is not ExitCode.OK:
        raise typer.Exit(int(done.exit_code))


def log_conversion(done: Conversion, out: Path, *, listed: Collection[str] = ()) -> None:
    """Report what was written, and what is missing from it.

    Args:
        done: the conversion.
        out: the folder of the files.
        listed: ids of answers whose failure has been reported.
    """
    for sort, problem in done.problems.items():
        log(f"{problem.count:,} lines: {sort}")
        for line in problem.first[:MOST_LISTED]:
            log(printable(f"  {line}"))
    written = done.written
    failed = [name for name in written.failed if name not in listed]
    for name in failed[:MOST_LISTED]:
        log(printable(f"left out: {name}: an error, no image or size, or a target that does not fit the image"))
    if len(failed) > MOST_LISTED:
        log(f"left out: {len(failed):,} answers altogether")
    if written.num_low_scores:
        log(f"left out: {written.num_low_scores:,} answers whose targets all have a low score")
    counts = f"answers: {written.num_answers:,}, targets: {written.num_targets:,}, files: {len(written.files):,}"
    log(f"wrote {out} ({counts})")
