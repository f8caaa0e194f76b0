"""`refcli audit`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from refcli.data.audit.overlaps import Audit

MOST_LISTED = 20


def command(
    store: Annotated[Path, typer.Argument(help="The store that `refcli prepare-data` wrote.", metavar="STORE")],
    check_images: Annotated[
        bool,
        typer.Option("--check-images", help="Read every image and look for the same photograph under two ids."),
    ] = False,
    max_distance: Annotated[
        int,
        typer.Option("--max-distance", help="Bits of 64 by which hashes of look-alikes may differ.", min=0, max=8),
    ] = 2,
    workers: Annotated[int, typer.Option("--workers", help="Processes that read images.", min=1)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON on stdout.")] = False,
    fail_on_overlap: Annotated[
        bool, typer.Option("--fail-on-overlap", help="Exit with code 4 if training and evaluation share images.")
    ] = False,
) -> None:
    """Show what training splits share with evaluation splits, and what repeats within a split.

    Splits whose names start with train or focus are for training, all others for evaluation. Counted are images of the
    same id, objects of the same annotation or box, and expressions that occur with the same image and boxes. An
    expression is ambiguous if its text means other regions of the same image elsewhere in the split.
    Exit code 3: some images could not be read (they are listed); 4: --fail-on-overlap, and images are shared.
    """
    import json

    from refcli.cli.output import log, write_line
    from refcli.errors import ExitCode
    from refcli.recipes.audit import audit, refuse_overlap

    with _Bar() as bar:
        result = audit(store, check_images=check_images, max_distance=max_distance, workers=workers, progress=bar.show)
    if as_json:
        write_line(json.dumps(result.to_json(), indent=2))
    else:
        show_audit(result)
    for path, reason in list(result.unreadable_pictures.items())[:MOST_LISTED]:
        log(f"unreadable: {path}: {reason}")
    if result.unreadable_pictures:
        log(f"{len(result.unreadable_pictures):,} images could not be compared")
    if fail_on_overlap:
        refuse_overlap(result)
    if result.unreadable_pictures:
        raise typer.Exit(int(ExitCode.PARTIAL))


def show_audit(result: Audit) -> None:
    """Tables of the splits and of what pairs of them share."""
    from refcli.cli.output import log

    splits = [
        (row.name, row.examples, row.images, row.objects, row.duplicate_expressions, row.ambiguous_expressions)
        for row in result.splits
    ]
    _print_table(("split", "examples", "images", "objects", "duplicates", "ambiguous"), splits, num_names=1)
    log("")
    show_overlaps(result)
    for pair in (result.look_alikes or ())[:MOST_LISTED]:
        log(f"look-alike: {pair.train} (training), {pair.evaluation} (evaluation), {pair.distance} bits differ")
    if result.look_alikes and len(result.look_alikes) > MOST_LISTED:
        log(f"{len(result.look_alikes):,} look-alikes in all; --json lists them")


def show_overlaps(result: Audit, datasets: Collection[str] | None = None) -> None:
    """What pairs of a training and an evaluation split share; only pairs that `datasets` are part of, if given."""
    from refcli.cli.output import log

    pairs = [
        row
        for row in result.overlaps
        if datasets is None or {name.rpartition(":")[0] for name in (row.train, row.evaluation)} & set(datasets)
    ]
    found = [row for row in pairs if row.shared_images or row.look_alikes]
    if found:
        headings = ("training", "evaluation", "images", "objects", "identical", "look-alikes")
        counts = [
            (row.train, row.evaluation, row.shared_images, row.shared_objects, row.identical_examples, row.look_alikes)
            for row in found
        ]
        _print_table(headings[: 5 if result.look_alikes is None else 6], counts, num_names=2)
    for name in result.not_audited:
        log(f"not looked at: {name}, its parts are not all there yet")
    if pairs:
        shared = sum(bool(row.shared_images) for row in pairs)
        log(f"{shared} of {len(pairs)} pairs of training and evaluation splits share images")


def _print_table(headings: tuple[str, ...], rows: Sequence[tuple[str | int | None, ...]], *, num_names: int) -> None:
    from rich.markup import escape
    from rich.table import Table

    from refcli.cli.output import console_err, printable

    table = Table(box=None, pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < num_names else "right")
    for row in rows:
        cells = row[: len(headings)]
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else escape(printable(str(cell))) for cell in cells))
    console_err.print(table)


class _Bar:
    """A progress bar over images, on a terminal only and only once there is progress."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from refcli.cli.output import console_err

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bars = Progress(*columns, console=console_err, transient=True, disable=not console_err.is_terminal)
        self._task = self._bars.add_task("images", total=None, visible=False)

    def __enter__(self) -> _Bar:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def show(self, done: int, total: int) -> None:
        """Move the bar."""
        self._bars.update(self._task, completed=done, total=total, visible=True)
