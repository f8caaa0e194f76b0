"""`refcli audit`."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refcli.cli.output import log, log_table, write_line
from refcli.errors import ExitCode

if TYPE_CHECKING:
    from refcli.data.audit.overlaps import Audit

MOST_LISTED = 20


def command(
    store: Annotated[Path, typer.Argument(help="The store that `refcli prepare-data` wrote.", metavar="STORE")],
    check_images: Annotated[
        bool,
        typer.Option("--check-images", help="Read all images to find the same photograph under two ids."),
    ] = False,
    max_distance: Annotated[
        int,
        typer.Option("--max-distance", help="Bits of 64 by which hashes of near-duplicates may differ.", min=0, max=8),
    ] = 2,
    workers: Annotated[int, typer.Option("--workers", help="Number of processes that read images.", min=1)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON on stdout.")] = False,
    fail_on_overlap: Annotated[
        bool, typer.Option("--fail-on-overlap", help="Exit with code 4 if training and evaluation share images.")
    ] = False,
) -> None:
    """Find overlaps between training and evaluation splits.

    Repetitions within a split are counted too.

    Splits whose names start with train or focus are for training, all others for evaluation. The counts are of images
    with the same id, objects with the same annotation or box, and expressions with the same image and boxes. An
    expression is ambiguous if its text refers to other regions of the same image elsewhere in the split.
    Exit code 3: some images could not be read (they are listed); 4: --fail-on-overlap, and images are shared.
    """
    from refcli.cli.progress import ProgressBars
    from refcli.recipes.audit import audit, refuse_overlap

    with ProgressBars() as bars:
        result = audit(
            store,
            check_images=check_images,
            max_distance=max_distance,
            workers=workers,
            progress=lambda done, total: bars.show("images", done, total),
        )
    if as_json:
        write_line(json.dumps(result.to_json(), indent=2))
    else:
        show_audit(result)
    for path, reason in list(result.unreadable_images.items())[:MOST_LISTED]:
        log(f"unreadable: {path}: {reason}")
    if result.unreadable_images:
        log(f"{len(result.unreadable_images):,} images could not be compared")
    if fail_on_overlap:
        refuse_overlap(result)
    if result.unreadable_images:
        raise typer.Exit(int(ExitCode.PARTIAL))


def show_audit(result: Audit) -> None:
    """Show tables of the splits and of the overlaps of pairs."""
    splits = [
        (row.name, row.examples, row.images, row.objects, row.duplicate_expressions, row.ambiguous_expressions)
        for row in result.splits
    ]
    log_table(("split", "examples", "images", "objects", "duplicates", "ambiguous"), splits)
    log("")
    show_overlaps(result)
    for pair in (result.near_duplicates or ())[:MOST_LISTED]:
        log(f"near-duplicate: {pair.train} (training), {pair.evaluation} (evaluation), {pair.distance} bits differ")
    if result.near_duplicates and len(result.near_duplicates) > MOST_LISTED:
        log(f"{len(result.near_duplicates):,} near-duplicates in all; --json lists them")


def show_overlaps(result: Audit, datasets: Collection[str] | None = None) -> None:
    """Show the overlaps of training and evaluation splits; with `datasets`, only of pairs with one of them."""
    pairs = [
        row
        for row in result.overlaps
        if datasets is None or {name.rpartition(":")[0] for name in (row.train, row.evaluation)} & set(datasets)
    ]
    found = [row for row in pairs if row.shared_images or row.near_duplicates]
    if found:
        headings = ("training", "evaluation", "images", "objects", "identical", "near-duplicates")
        counts = [
            (
                pair.train,
                pair.evaluation,
                pair.shared_images,
                pair.shared_objects,
                pair.identical_examples,
                pair.near_duplicates,
            )
            for pair in found
        ]
        num_columns = 5 if result.near_duplicates is None else 6
        log_table(headings[:num_columns], [row[:num_columns] for row in counts], num_names=2)
    for name in result.not_audited:
        log(f"not audited: {name}, some of its parts are missing or it is empty")
    if pairs:
        shared = sum(bool(row.shared_images) for row in pairs)
        log(f"{shared} of {len(pairs)} pairs of training and evaluation splits share images")
