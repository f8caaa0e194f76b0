"""What `refcli prepare-data` says about its work."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from refcli.cli.output import console_err, log, printable, write_line
from refcli.data.store.write import SplitSummary
from refcli.errors import DataError

if TYPE_CHECKING:
    from rich.progress import TaskID

    from refcli.data.preparation.counting import CountCheck
    from refcli.data.preparation.plan import Plan
    from refcli.recipes.prepare_data import DatasetReport, Preparation

SHOWN_PLACES = 3
"""Places of each kind of problem on the screen; the report file has more."""


def data_sets(as_json: bool) -> None:
    """Every data set that ships with refcli."""
    from refcli.data.spec import list_specs, load_spec

    rows = [(name, load_spec(name)) for name in list_specs()]
    if as_json:
        write_line(json.dumps([{"name": name, **spec.model_dump(mode="json")} for name, spec in rows]))
        return
    for name, spec in rows:
        write_line(f"{name}  {spec.description} [{spec.licence}]")


def verification(store: Path) -> None:
    """Compare a store with its manifest.

    Raises:
        DataError: something differs; every difference has been listed.
    """
    from refcli.data.preparation.origin import verify_store

    wrong = verify_store(store)
    for line in wrong:
        log(line)
    if wrong:
        raise DataError(
            f"{len(wrong)} files are not as the manifest says", where=str(store), hint="prepare those splits again"
        )
    write_line(str(store))


def plan(of: Plan, how: Preparation) -> list[dict[str, Any]]:
    """What would be read and written."""
    for note in of.notes:
        log(note)
    log(f"{of.dataset}: format {of.source_name}, settings {of.settings.model_dump(mode='json')}")
    for role, path in of.files.items():
        log(f"  would read {role}: {path}")
    splits = how.splits or (tuple(of.spec.splits) if of.spec and of.spec.splits else ("every split of the files",))
    log(f"  would write {', '.join(splits)} to {how.out / of.dataset}")
    looked = ", ".join(map(str, how.images)) or "not looked for"
    log(f"  images: {looked}")
    files = {role: str(path) for role, path in of.files.items()}
    return [{"dataset": of.dataset, "status": "dry-run", "source": of.source_name, "files": files}]


def report(of: DatasetReport) -> None:
    """Counts, differences and problems of one data set."""
    if of.status == "unchanged":
        log(f"{of.dataset}: nothing has changed, nothing was done (--force does it again)")
        return
    splits(of.splits)
    _counts(of.dataset, of.counts)
    for split, lost in of.lost.items():
        log(f"{of.dataset}:{split}: {lost:,} expressions were left out")
    for split, lost_masks in of.lost_masks.items():
        log(f"warning: {of.dataset}:{split}: {lost_masks:,} masks cannot be read and are not in the store")
    for kind, count in of.problems.counts.most_common():
        log(f"  {kind.replace('_', ' ')}: {count:,}")
        for place in of.problems.places[kind][:SHOWN_PLACES]:
            log(f"    {place}")
    log(f"{of.dataset}: {of.seconds:.1f} s")


def _counts(dataset: str, counts: Sequence[CountCheck]) -> None:
    for split in dict.fromkeys(check.split for check in counts if not check.agrees):
        wrong = [check for check in counts if check.split == split and not check.agrees]
        found = ", ".join(f"{check.found:,} {check.what}" for check in wrong)
        known = ", ".join(f"{check.expected:,}" for check in wrong)
        certainty = "are expected" if wrong[0].is_certain else "are remembered, not verified"
        log(f"warning: {dataset}:{split} has {found}; {known} {certainty}")
    if counts:
        log(f"{dataset}: {sum(check.agrees for check in counts)} of {len(counts)} known counts agree")


def splits(rows: Iterable[SplitSummary]) -> None:
    """A table of what was written."""
    table = Table(box=None, pad_edge=False)
    for column in ("split", "images", "examples", "regions", "masks", "no target", "MB"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for row in rows:
        counts = (row.images, row.examples, row.regions, row.masks, row.no_target)
        name = escape(printable(f"{row.dataset}:{row.split}"))
        table.add_row(name, *(f"{count:,}" for count in counts), f"{row.bytes / 1e6:.1f}")
    console_err.print(table)


def generated(
    name: str, how: Preparation, *, size: int, seed: int, overrides: Mapping[str, Any], dry_run: bool
) -> list[dict[str, Any]]:
    """Make the splits of a generated data set."""
    from refcli.recipes.generate_data import generate_data

    if dry_run:
        log(
            f"{name}: would draw {size} images with seed {seed} for "
            + ", ".join(how.splits or ("train", "val", "test"))
        )
        return [{"dataset": name, "status": "dry-run"}]
    with Counting() as bar:
        summaries = generate_data(
            name,
            out=how.out,
            size=size,
            seed=seed,
            splits=how.splits,
            workers=how.workers,
            overrides=overrides,
            progress=bar.wrote,
        )
    splits(summaries)
    return [{"dataset": name, "status": "written", "splits": [asdict(summary) for summary in summaries]}]


def mixed(name: str, how: Preparation, *, keep_leaks: bool, allow_missing: bool, dry_run: bool) -> list[dict[str, Any]]:
    """Put a mixture together from splits of the store."""
    from refcli.data.spec import load_spec
    from refcli.data.training.mixtures import write_mixture

    spec = load_spec(name)
    if dry_run:
        for split, members in spec.mixture.items():
            log(f"{name}:{split} would be {' + '.join(members)}")
        return [{"dataset": name, "status": "dry-run", "mixture": dict(spec.mixture)}]
    with Counting() as bar:
        made = write_mixture(
            how.out,
            name,
            spec,
            keep_leaks=keep_leaks,
            allow_missing=allow_missing,
            strict=how.strict,
            force=how.force,
            splits=how.splits,
            progress=bar.wrote,
        )
    if made.status == "unchanged":
        log(f"{name}: nothing has changed, nothing was done (--force does it again)")
        return [{"dataset": name, **asdict(made)}]
    splits(made.summaries)
    _counts(name, made.counts)
    for member in made.members:
        verb = "kept" if keep_leaks else "left out"
        log(
            f"{name}:{member.split} from {member.member}: {member.rows:,} expressions; {member.leaking_rows:,} on "
            f"{member.leaking_images:,} images of evaluation splits {verb}"
        )
    for missing in made.missing_evaluation:
        log(f"warning: {missing} is not in the store: its images may be in {name}'s training splits")
    return [{"dataset": name, **asdict(made)}]


def overlaps(out: Path, datasets: Collection[str], *, check_images: bool, workers: int) -> dict[str, Any]:
    """What the audit of the store finds about pairs of splits that these data sets are part of."""
    from refcli.cli.audit import show_overlaps
    from refcli.recipes.audit import audit

    found = audit(out, only=datasets, check_images=check_images, workers=workers)
    show_overlaps(found, datasets)
    return found.to_json()


def as_json(out: Path, done: Sequence[dict[str, Any]], audit: dict[str, Any] | None) -> None:
    """Everything that was done, as one JSON object on stdout."""
    write_line(json.dumps({"store": str(out), "datasets": list(done), "audit": audit}))


class Counting:
    """Bars on a terminal, nothing elsewhere."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bars = Progress(*columns, console=console_err, transient=True, disable=not console_err.is_terminal)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Counting:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def wrote(self, split: str, done: int, total: int) -> None:
        """Move the bar of a split whose size is known."""
        self._move(split, done, total)

    def read(self, dataset: str, done: int) -> None:
        """Move the bar of a data set whose size is not known."""
        self._move(dataset, done, None)

    def _move(self, name: str, done: int, total: int | None) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(escape(printable(name)), total=total)
        self._bars.update(self._tasks[name], completed=done)
