"""Mixtures: splits of a store put together into new ones, without the pictures that scores are reported on."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from refcli.data.columns import SCHEMA
from refcli.data.manifest import MANIFEST, write_manifest
from refcli.data.spec import DatasetSpec, is_evaluation_split, list_specs, load_spec
from refcli.data.store import Store, StoreSplit
from refcli.data.store_writing import SplitSummary, write_tables
from refcli.errors import DataError, UsageError
from refcli.files import write_atomically
from refcli.tables import nearest

EVAL_IMAGE_KEYS = "eval_image_keys.txt"
"""Beside a mixture's splits: the image ids that its training splits must not have, one a line, sorted."""


@dataclass
class MemberReport:
    """What one member gave to one split of a mixture."""

    split: str
    """Of the mixture."""
    member: str
    """ "dataset:split"."""
    rows: int = 0
    """Rows of the member."""
    images: int = 0
    """Distinct image ids among them."""
    leaking_rows: int = 0
    """Rows of a training split whose picture is in an evaluation split of the family."""
    leaking_images: int = 0
    dropped_rows: int = 0
    """The leaking rows, or none if leaks were kept."""
    dropped_images: int = 0


@dataclass(frozen=True)
class MixtureReport:
    """What was put together, and what was left out."""

    name: str
    keep_leaks: bool
    members: tuple[MemberReport, ...]
    evaluation_images: int
    """Distinct image ids in the family's evaluation splits."""
    missing_evaluation: tuple[str, ...]
    """Evaluation splits of the family, as "dataset:split", that the store lacks: their pictures could not be found in
    the training splits."""
    summaries: tuple[SplitSummary, ...]


@dataclass
class _Member:
    """One member split while it is copied."""

    store: StoreSplit
    report: MemberReport
    id_prefix: str
    image_prefix: str
    evaluated: pa.Array | None
    """Image ids to look for; None in an evaluation split."""
    images: set[str] = field(default_factory=set)
    leaking: set[str] = field(default_factory=set)


def write_mixture(
    store_path: Path,
    name: str,
    spec: DatasetSpec,
    *,
    keep_leaks: bool,
    strict: bool = False,
    splits: Collection[str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> MixtureReport:
    """Put splits of a store together as the data set `name`, and list them in its manifest.

    A row group is in memory at a time. Rows keep their order, member after member. Ids are kept if they begin with
    their data set's name and a slash, and are given that beginning if not (of every row of a member or of none).
    The mixture's image root is the nearest folder above those of its members. Also writes `EVAL_IMAGE_KEYS`.

    Args:
        store_path: the store that holds the members and gets the mixture.
        name: of the mixture.
        spec: its `mixture` and `family`.
        keep_leaks: keep training rows whose picture is in an evaluation split of the family, as the papers do; they
            are counted all the same.
        strict: refuse if evaluation splits of the family are not in the store, because their pictures would stay.
        splits: the splits of the mixture to write; None for all.
        progress: called with (split of the mixture, rows done, rows in all).

    Raises:
        UsageError: the mixture has no such split.
        DataError: `spec` is no mixture; members (or, if strict and leaks are not kept, evaluation splits) are not in
            the store; a split is left without rows; the store is damaged.
    """
    wanted = _wanted_splits(name, spec, splits)
    known = Store(store_path).names() if (store_path / MANIFEST).is_file() else []
    needed = list(dict.fromkeys(member for split in wanted for member in spec.mixture[split]))
    _require(f"members of {name} are", [member for member in needed if member not in known], store_path)
    store = Store(store_path)
    present, missing = _evaluation_splits(spec, known)
    if strict and not keep_leaks:
        _require(f"evaluation splits, whose pictures {name} must not train on, are", missing, store_path)
    evaluated = _image_ids(store, present)
    keys = sorted(evaluated)
    reports: list[MemberReport] = []
    summaries: list[SplitSummary] = []
    for split in wanted:
        looked_for = None if is_evaluation_split(split) else pa.array(keys, pa.string())
        members, root = _open_members(store, split, spec.mixture[split], looked_for)
        tables = _tables(members, name, split, keep_leaks, progress)
        summary = write_tables(store_path, name, split, tables)
        reports += (member.report for member in members)
        summaries.append(summary)
        origin = _origin(store, members, keep_leaks, missing)
        write_manifest(store_path, [summary], images=root, origin=origin)
    write_atomically(store_path / name / EVAL_IMAGE_KEYS, "".join(f"{key}\n" for key in keys).encode())
    return MixtureReport(
        name=name,
        keep_leaks=keep_leaks,
        members=tuple(reports),
        evaluation_images=len(keys),
        missing_evaluation=tuple(missing),
        summaries=tuple(summaries),
    )


def _wanted_splits(name: str, spec: DatasetSpec, splits: Collection[str] | None) -> list[str]:
    if not spec.mixture:
        raise DataError("this data set is not a mixture of others", where=name)
    for split in splits or ():
        if split not in spec.mixture:
            guess = nearest(split, spec.mixture)
            raise UsageError(
                f"the mixture {name} has no split {split!r}",
                where="--split",
                hint=(f"did you mean {guess!r}? " if guess else "") + "known: " + ", ".join(spec.mixture),
            )
    return [split for split in spec.mixture if splits is None or split in splits]


def _require(what: str, missing: Sequence[str], store_path: Path) -> None:
    if missing:
        names = " ".join(dict.fromkeys(member.partition(":")[0] for member in missing))
        raise DataError(
            f"{what} not in the store: {', '.join(missing)}",
            where=str(store_path),
            hint=f"make them first: refcli prepare-data {names} --raw DIR --images DIR --out {store_path}",
        )


def _evaluation_splits(spec: DatasetSpec, known: Sequence[str]) -> tuple[list[str], list[str]]:
    """Evaluation splits of the family: those in the store, and those that should exist but are not there."""
    specs = list_specs()
    present: list[str] = []
    missing: list[str] = []
    for dataset in spec.family:
        stored = [name for name in known if name.partition(":")[0] == dataset]
        expected = [f"{dataset}:{split}" for split in load_spec(dataset).splits] if dataset in specs else []
        for name in dict.fromkeys((*expected, *stored)):
            if is_evaluation_split(name.partition(":")[2]):
                (present if name in stored else missing).append(name)
    return present, missing


def _image_ids(store: Store, names: Sequence[str]) -> set[str]:
    return {
        key
        for name in names
        for table in store.split(name).tables(["image_id"])
        for key in pc.unique(table["image_id"]).to_pylist()
    }


def _open_members(
    store: Store, split: str, names: Sequence[str], evaluated: pa.Array | None
) -> tuple[list[_Member], str]:
    """The members of a split, and their common image root as the manifest has it."""
    opened = [store.split(name) for name in names]
    home = store.path.resolve()
    inside = all(one.image_root.is_relative_to(store.path) for one in opened)
    roots = [_image_root(one, store.path, home) for one in opened]
    common = os.path.commonpath(roots)
    datasets = [name.partition(":")[0] for name in names]
    members = [
        _Member(
            store=one,
            report=MemberReport(split, one.name),
            id_prefix=_id_prefix(one, several_splits=datasets.count(dataset) > 1),
            image_prefix=Path(root).relative_to(common).as_posix(),
            evaluated=evaluated,
        )
        for one, root, dataset in zip(opened, roots, datasets, strict=True)
    ]
    return members, Path(os.path.relpath(common, home)).as_posix() if inside else common


def _image_root(split: StoreSplit, store_path: Path, home: Path) -> str:
    """Absolute, without `..`; roots inside the store follow the store's true place."""
    root = split.image_root
    if root.is_relative_to(store_path):
        root = home / root.relative_to(store_path)
    return os.path.normpath(root.absolute())


def _id_prefix(split: StoreSplit, *, several_splits: bool) -> str:
    """What to put before a member's ids, so that none can be another member's: names hold no slash."""
    dataset, _, part = split.name.partition(":")
    prefix = f"{dataset}/{part}/" if several_splits else f"{dataset}/"
    has_it = all(pc.all(pc.starts_with(table["id"], prefix)).as_py() for table in split.tables(["id"]))
    return "" if has_it else prefix


def _tables(
    members: Sequence[_Member],
    name: str,
    split: str,
    keep_leaks: bool,
    progress: Callable[[str, int, int], None] | None,
) -> Iterator[pa.Table]:
    total = sum(len(member.store) for member in members)
    done = 0
    for member in members:
        for table in member.store.tables():
            done += len(table)
            yield _renamed(_without_leaks(table, member, keep_leaks), member, name, split)
            if progress:
                progress(split, done, total)


def _without_leaks(table: pa.Table, member: _Member, keep_leaks: bool) -> pa.Table:
    report = member.report
    report.rows += len(table)
    member.images.update(pc.unique(table["image_id"]).to_pylist())
    report.images = len(member.images)
    if member.evaluated is None:
        return table
    leaks = pc.is_in(table["image_id"], value_set=member.evaluated)
    leaking = table["image_id"].filter(leaks)
    member.leaking.update(pc.unique(leaking).to_pylist())
    report.leaking_rows += len(leaking)
    report.leaking_images = len(member.leaking)
    if keep_leaks:
        return table
    report.dropped_rows, report.dropped_images = report.leaking_rows, report.leaking_images
    return table.filter(pc.invert(leaks))


def _renamed(table: pa.Table, member: _Member, name: str, split: str) -> pa.Table:
    """The rows as rows of the mixture."""
    changed = {
        "dataset": pa.repeat(pa.scalar(name), len(table)),
        "split": pa.repeat(pa.scalar(split), len(table)),
    }
    if member.id_prefix:
        changed["id"] = pc.binary_join_element_wise(member.id_prefix, table["id"], "")
    if member.image_prefix != ".":
        changed["image"] = pc.binary_join_element_wise(member.image_prefix, table["image"], "/")
    return pa.table([changed.get(column, table[column]) for column in SCHEMA.names], schema=SCHEMA)


def _origin(store: Store, members: Sequence[_Member], keep_leaks: bool, missing: Sequence[str]) -> dict[str, Any]:
    """What the manifest says about a split of a mixture."""
    return {
        "mixture": [asdict(member.report) | {"origin": store.origin(member.report.member)} for member in members],
        "keep_leaks": keep_leaks,
        "missing_evaluation": list(missing),
    }
