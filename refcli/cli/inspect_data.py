"""`refcli inspect-data`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from refcli.data.store.statistics import Bin, Distribution, SplitStatistics
    from refcli.recipes.inspect_data import DrawnSample

MOST_KINDS = 12
BAR_WIDTH = 12
"""Characters of the longest bar of a histogram."""
EIGHTHS = " ▏▎▍▌▋▊▉"
WIDTH_WITHOUT_TERMINAL = 120
"""Characters per line if stdout is not a terminal."""
WIDEST_TABLE = 1000
"""Wide enough that counts are never cut off, however narrow the terminal."""
NARROWEST_HISTOGRAM = 36
"""Wide enough for the line of figures above it."""
Row = tuple[str, int]


def command(
    store: Annotated[Path, typer.Argument(help="The store that `refcli prepare-data` wrote.", metavar="STORE")],
    splits: Annotated[
        list[str] | None,
        typer.Option(
            "--split", help="Only this split; may be given several times. Default: all.", metavar="DATASET:SPLIT"
        ),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option("--sample", "-n", help="Number of random examples of each split to draw into --out.", min=1),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The folder for the drawings of --sample.", metavar="DIR")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the random examples.", min=0)] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the drawings of an earlier call in --out.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document with all figures.")] = False,
) -> None:
    """Show counts of a store and draw examples.

    Counts and histograms of each split go to stdout.

    --sample writes DIR/DATASET/SPLIT-ROW.png for each example, all of them as DIR/contact_sheet.png, and their list as
    DIR/inspection.json. DIR must be missing or empty; --force replaces the drawings of an earlier call. An example that
    cannot be drawn is listed on stderr and replaced by another. Box sizes are shares of the image.
    Exit code 3: some examples could not be drawn; 1: none could.
    """
    import json

    from refcli.cli.output import write_line
    from refcli.recipes.inspect_data import inspect_data

    inspection = inspect_data(store, splits, num_samples=sample, out=out, seed=seed, force=force)
    if json_:
        write_line(json.dumps(inspection.document(), indent=2))
    else:
        write_line(_tables(inspection.splits))
    if inspection.sample is not None:
        _log_sample(inspection.sample)
    if inspection.exit_code:
        raise typer.Exit(int(inspection.exit_code))


def _log_sample(sample: DrawnSample) -> None:
    from refcli.cli.output import MAX_FAILURES_LISTED, log

    for failure in sample.failures[:MAX_FAILURES_LISTED]:
        log(f"failed: {failure.split} {failure.id}: {failure.error}")
    if sample.failures:
        more = len(sample.failures) - MAX_FAILURES_LISTED
        log(f"not drawn: {len(sample.failures)}" + (f", {more} more than are listed" if more > 0 else ""))
    if sample.sheet is None:
        log("nothing could be drawn: are the images where `refcli prepare-data --images` found them?")
    else:
        log(f"wrote {sample.sheet} and {len(sample.drawn)} drawings beside it")


def _tables(splits: Sequence[SplitStatistics]) -> str:
    """The counts of all splits, then the histograms of each, as wide as the terminal."""
    import sys

    from rich.columns import Columns
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    from refcli.cli.output import printable

    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)
    is_ascii = console.options.ascii_only
    with console.capture() as captured:
        console.print(_counts(splits), width=WIDEST_TABLE, crop=False)
        console.print()
        for split in splits:
            console.print(Text(printable(split.name), style="bold"))
            if split.unknown_size:
                console.print(
                    f"boxes not measured, because the image's size is unknown: {split.unknown_size:,} expressions"
                )
            if split.ignored:
                console.print(f"with pixels that no mask metric counts: {split.ignored:,} expressions")
            console.print()
            tables = _histograms(split, is_ascii=is_ascii)
            console.print(Columns([Padding(table, (0, 0, 1, 0)) for table in tables], padding=(0, 4)))
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())


def _counts(splits: Sequence[SplitStatistics]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from refcli.cli.output import printable

    table = Table(box=None, pad_edge=False)
    for column in ("split", "images", "expressions", "regions", "masks", "no target", "kinds"):
        table.add_column(column, justify="left" if column == "split" else "right", no_wrap=True)
    for split in splits:
        counts = (split.images, split.expressions, split.regions, split.masks, split.no_target, len(split.kinds))
        table.add_row(Text(printable(split.name)), *(f"{count:,}" for count in counts))
    return table


def _histograms(split: SplitStatistics, *, is_ascii: bool) -> list[Table]:
    shown = [
        _distribution("words per expression", split.expression_words),
        _distribution("regions per expression", split.regions_per_expression),
        _distribution("expressions per image", split.expressions_per_image),
        _distribution("box area, % of the image", split.box_area_share, scale=100),
        _distribution("square root of the area, %", split.box_side_share, scale=100),
    ]
    if split.kinds:
        shown.append(("kind of expression", "", _kinds(split)))
    return [_histogram(title, figures, rows, is_ascii=is_ascii) for title, figures, rows in shown if rows]


def _kinds(split: SplitStatistics) -> list[Row]:
    """The most frequent kinds, then the other kinds together, then the expressions without a kind."""
    rows = list(split.kinds.items())
    rest = [
        (f"({len(rows) - MOST_KINDS} others)", sum(count for _, count in rows[MOST_KINDS:])),
        ("(none)", split.expressions - sum(split.kinds.values())),
    ]
    return [*rows[:MOST_KINDS], *((label, count) for label, count in rest if count)]


def _distribution(title: str, spread: Distribution, *, scale: float = 1) -> tuple[str, str, list[Row]]:
    """Title, a line of figures, and the rows from the first to the last non-empty bin."""
    if spread.mean is None or spread.median is None or spread.largest is None:
        return title, "", []
    mean, median, largest = (_short(scale * value) for value in (spread.mean, spread.median, spread.largest))
    filled = [number for number, one in enumerate(spread.bins) if one.count]
    rows = [(_label(one, scale), one.count) for one in spread.bins[filled[0] : filled[-1] + 1]]
    return title, f"mean {mean}  median {median}  max {largest}", rows


def _short(value: float) -> str:
    return f"{value:,.2f}".rstrip("0").rstrip(".")


def _label(one: Bin, scale: float) -> str:
    """The range of a bin: "3", "6-10", "31+" for whole numbers, "2.5-5" for shares."""
    start = f"{scale * one.start:g}"
    if one.stop is None:
        return f"{start}+"
    last = scale * one.stop if scale != 1 else one.stop - 1
    return start if scale == 1 and last == one.start else f"{start}-{last:g}"


def _histogram(title: str, figures: str, rows: Sequence[Row], *, is_ascii: bool) -> Table:
    from rich.table import Table
    from rich.text import Text

    from refcli.cli.output import printable

    table = Table(box=None, pad_edge=False, show_header=False, title_justify="left", min_width=NARROWEST_HISTOGRAM)
    table.title_style = ""
    table.title = Text.assemble((title, "bold"), *(("\n", (figures, "dim")) if figures else ()))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="cyan", no_wrap=True, width=BAR_WIDTH)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", style="dim", no_wrap=True)
    most, total = max(count for _, count in rows), sum(count for _, count in rows)
    for label, count in rows:
        table.add_row(
            Text(printable(label)), bar(count / most, is_ascii=is_ascii), f"{count:,}", f"{count / total:.1%}"
        )
    return table


def bar(share: float, *, is_ascii: bool = False) -> str:
    """A bar of up to `BAR_WIDTH` characters for a share in 0..1; any share above 0 is visible."""
    if is_ascii:
        return "#" * max(round(share * BAR_WIDTH), share > 0)
    whole, eighths = divmod(max(round(share * BAR_WIDTH * 8), share > 0), 8)
    return "█" * whole + EIGHTHS[eighths].strip()
