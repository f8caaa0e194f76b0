"""`refcli prepare-data`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.progress import TaskID

    from refcli.data.store import SplitSummary


def command(
    name: Annotated[str | None, typer.Argument(help="The source to prepare, e.g. synthetic.", metavar="[NAME]")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The store to write to or add to.", metavar="STORE")
    ] = None,
    size: Annotated[
        int, typer.Option("--size", help="Pictures in each --split; without --split, in train.", min=1)
    ] = 2000,
    seed: Annotated[int, typer.Option("--seed", help="Other seeds give other pictures.", min=0)] = 0,
    split: Annotated[
        list[str] | None,
        typer.Option("--split", help="Write only this split; may be given several times. Default train, val, test."),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", help="Processes that work.", min=1)] = 1,
    list_: Annotated[bool, typer.Option("--list", help="List the sources and leave.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")] = False,
) -> None:
    """Write pictures, expressions, boxes and masks into a store.

    Splits that the store already has stay; a split of the same name is replaced.
    """
    from refcli.errors import UsageError

    if list_:
        _print_sources(as_json)
        return
    if name is None:
        raise UsageError("no source is named", where="NAME", hint="see `refcli prepare-data --list`")
    if out is None:
        raise UsageError("no store is named", where="--out", hint=f"refcli prepare-data {name} --out STORE")

    import json
    from dataclasses import asdict

    from refcli.cli.output import write_line
    from refcli.recipes.prepare_data import prepare_data

    with _Progress() as progress:
        summaries = prepare_data(
            name, out=out, size=size, seed=seed, splits=split, workers=workers, progress=progress.wrote
        )
    if as_json:
        write_line(json.dumps({"store": str(out), "splits": [asdict(summary) for summary in summaries]}))
        return
    _show(summaries)
    write_line(str(out))


def _print_sources(as_json: bool) -> None:
    import json
    from dataclasses import asdict

    from refcli.cli.output import write_line
    from refcli.recipes.prepare_data import list_sources

    rows = list_sources()
    if as_json:
        write_line(json.dumps([asdict(row) for row in rows]))
        return
    for row in rows:
        write_line(f"{row.name}  {row.description} [{row.licence}]")


def _show(summaries: Sequence[SplitSummary]) -> None:
    from rich.table import Table

    from refcli.cli.output import console_err

    table = Table(box=None, pad_edge=False)
    for column in ("split", "images", "examples", "regions", "masks", "no target", "MB"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for row in summaries:
        counts = (row.images, row.examples, row.regions, row.masks, row.no_target)
        table.add_row(f"{row.dataset}:{row.split}", *(f"{count:,}" for count in counts), f"{row.bytes / 1e6:.1f}")
    console_err.print(table)


class _Progress:
    """A bar per split, on a terminal only."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from refcli.cli.output import console_err

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bars = Progress(*columns, console=console_err, transient=True, disable=not console_err.is_terminal)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> _Progress:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def wrote(self, split: str, done: int, total: int) -> None:
        """Move the bar of a split."""
        if split not in self._tasks:
            self._tasks[split] = self._bars.add_task(split, total=total)
        self._bars.update(self._tasks[split], completed=done)
