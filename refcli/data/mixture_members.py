"""The members of a mixture: their rows, one after the other, as rows of the mixture."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from refcli.data.columns import SCHEMA
from refcli.data.store import Store, StoreSplit


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


@dataclass
class Member:
    """One member split while it is copied."""

    store: StoreSplit
    report: MemberReport
    id_prefix: str
    image_prefix: str
    evaluated: pa.Array | None
    """Image ids to look for; None in an evaluation split."""
    images: set[str] = field(default_factory=set)
    leaking: set[str] = field(default_factory=set)


def open_members(
    store: Store, split: str, names: Sequence[str], evaluated: pa.Array | None
) -> tuple[list[Member], str]:
    """The members of a split, and their common image root as the manifest has it."""
    opened = [store.split(name) for name in names]
    home = store.path.resolve()
    inside = all(one.image_root.is_relative_to(store.path) for one in opened)
    roots = [_image_root(one, store.path, home) for one in opened]
    common = os.path.commonpath(roots)
    datasets = [name.partition(":")[0] for name in names]
    members = [
        Member(
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


def member_tables(
    members: Sequence[Member],
    name: str,
    split: str,
    keep_leaks: bool,
    progress: Callable[[str, int, int], None] | None,
) -> Iterator[pa.Table]:
    """The rows of a split of the mixture `name`, a row group at a time, counted in the members' reports."""
    total = sum(len(member.store) for member in members)
    done = 0
    for member in members:
        for table in member.store.tables():
            done += len(table)
            yield _renamed(_without_leaks(table, member, keep_leaks), member, name, split)
            if progress:
                progress(split, done, total)


def _without_leaks(table: pa.Table, member: Member, keep_leaks: bool) -> pa.Table:
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


def _renamed(table: pa.Table, member: Member, name: str, split: str) -> pa.Table:
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
