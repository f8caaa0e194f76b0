"""Mixtures: splits of a store put together into new ones, without the images that scores are reported on."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

import refcli
from refcli.data.preparation.counting import CountCheck, compare_counts
from refcli.data.spec import DatasetSpec, is_evaluation_split, is_train_like, list_specs, load_spec
from refcli.data.store.layout import MANIFEST, SCHEMA, is_in_place, read_manifest, split_files
from refcli.data.store.read import Store, StoreSplit
from refcli.data.store.write import Listing, SplitSummary, SplitWriter, list_splits, new_split
from refcli.errors import DataError, UsageError
from refcli.files import write_atomically
from refcli.tables import did_you_mean

EVAL_IMAGE_KEYS = "eval_image_keys.txt"
"""Beside a mixture's splits: the image ids that its training splits must not have, one a line, sorted."""


@dataclass(frozen=True)
class MixtureReport:
    """What was put together, and what was left out."""

    name: str
    keep_leaks: bool
    missing_evaluation: tuple[str, ...]
    """Evaluation splits of the family, as "dataset:split", that the store lacks: their images could not be found in
    the training splits."""
    status: Literal["written", "unchanged"] = "written"
    """Unchanged: nothing was done, and the rest is empty."""
    members: tuple[MemberReport, ...] = ()
    evaluation_images: int = 0
    """Distinct image ids in the family's evaluation splits."""
    counts: tuple[CountCheck, ...] = ()
    """If leaks were kept: images and expressions against those that are published."""
    summaries: tuple[SplitSummary, ...] = ()


@dataclass(frozen=True)
class _Written:
    """One split of the mixture, finished but not yet at its place."""

    writer: SplitWriter
    summary: SplitSummary
    members: list[Member]
    image_root: str

    def counts(self) -> dict[str, int]:
        """What it holds with every leaking row, as data specifications name it."""
        return {
            "images": len(set[str]().union(*(member.images for member in self.members))),
            "expressions": sum(member.report.rows for member in self.members),
        }


def write_mixture(
    store_path: Path,
    name: str,
    spec: DatasetSpec,
    *,
    keep_leaks: bool,
    allow_missing: bool = False,
    strict: bool = False,
    force: bool = False,
    splits: Collection[str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> MixtureReport:
    """Put splits of a store together as the data set `name`, and list them in its manifest.

    A row group is in memory at a time. Rows keep their order, member after member. Ids are kept if they begin with
    their data set's name and a slash, and are given that beginning if not (of every row of a member or of none).
    The mixture's image root is the nearest folder above those of its members. Also writes `EVAL_IMAGE_KEYS`. Nothing
    is published before every split is finished.

    Args:
        store_path: the store that holds the members and gets the mixture.
        name: of the mixture.
        spec: its `mixture`, `family` and published counts.
        keep_leaks: keep training rows whose image is in an evaluation split of the family, as the papers do; they
            are counted all the same.
        allow_missing: accept that evaluation splits of the family are not in the store, so that their images stay
            in the training splits.
        strict: if leaks are kept, refuse counts that differ from those published.
        force: do again what is unchanged.
        splits: the splits of the mixture to write; None for all.
        progress: called with (split of the mixture, rows done, rows in all).

    Raises:
        UsageError: the mixture has no such split.
        DataError: `spec` is no mixture; members are not in the store, or evaluation splits of the family where they
            are needed; a split is left without rows; `strict`, and a count differs; the store is damaged. The store
            is then as it was.
    """
    wanted = _wanted_splits(name, spec, splits)
    known = Store(store_path).names() if (store_path / MANIFEST).is_file() else []
    needed = list(dict.fromkeys(member for split in wanted for member in spec.mixture[split]))
    _require(f"members of {name} are", [member for member in needed if member not in known], store_path)
    store = Store(store_path)
    present, missing = _evaluation_splits(spec, store)
    if any(is_train_like(split) for split in wanted) and not (keep_leaks or allow_missing):
        _require(
            f"evaluation splits, whose images {name} must not train on, are",
            missing,
            store_path,
            otherwise="; --allow-missing leaves their images in, --reproduce-paper all of them",
        )
    origins = _origins(store_path, spec, wanted, present, missing, keep_leaks)
    if not force and _is_unchanged(store_path, name, origins, strict=strict):
        return MixtureReport(name, keep_leaks, tuple(missing), "unchanged")
    keys = sorted(_image_ids(store, present))
    with ExitStack() as stack:
        written: dict[str, _Written] = {}
        for split in wanted:
            looked_for = None if is_evaluation_split(split) else pa.array(keys, pa.string())
            members, root = open_members(store, split, spec.mixture[split], looked_for)
            writer = stack.enter_context(new_split(store_path, name, split))
            for table in member_tables(members, name, split, keep_leaks, progress):
                writer.write(table)
            written[split] = _Written(writer, writer.finish(), members, root)
        found = {split: one.counts() for split, one in written.items()} if keep_leaks else {}
        counts = compare_counts(spec.splits, found)
        refused = _refused_if_strict(name, counts, store_path)
        if refused and strict:
            raise refused
        list_splits(
            store_path,
            [
                Listing(
                    one.summary,
                    images=one.image_root,
                    origin=origins[split],
                    outcome={
                        "members": [asdict(member.report) for member in one.members],
                        "evaluation_images": len(keys),
                        "refused_if_strict": refused.message if refused else None,
                    },
                    writer=one.writer,
                )
                for split, one in written.items()
            ],
        )
    write_atomically(store_path / name / EVAL_IMAGE_KEYS, "".join(f"{key}\n" for key in keys).encode())
    return MixtureReport(
        name=name,
        keep_leaks=keep_leaks,
        missing_evaluation=tuple(missing),
        members=tuple(member.report for one in written.values() for member in one.members),
        evaluation_images=len(keys),
        counts=tuple(counts),
        summaries=tuple(one.summary for one in written.values()),
    )


def _wanted_splits(name: str, spec: DatasetSpec, splits: Collection[str] | None) -> list[str]:
    if not spec.mixture:
        raise DataError("this data set is not a mixture of others", where=name)
    for split in splits or ():
        if split not in spec.mixture:
            raise UsageError(
                f"the mixture {name} has no split {split!r}",
                where="--split",
                hint=did_you_mean(split, spec.mixture),
            )
    return [split for split in spec.mixture if splits is None or split in splits]


def _require(what: str, missing: Sequence[str], store_path: Path, *, otherwise: str = "") -> None:
    if missing:
        names = " ".join(dict.fromkeys(member.partition(":")[0] for member in missing))
        raise DataError(
            f"{what} not in the store: {', '.join(missing)}",
            where=str(store_path),
            hint=f"make them first: refcli prepare-data {names} --raw DIR --images DIR --out {store_path}{otherwise}",
        )


def _evaluation_splits(spec: DatasetSpec, store: Store) -> tuple[list[str], list[str]]:
    """Evaluation splits of the family: those in the store, and those that should be there whole but are not."""
    specs, known, whole = list_specs(), store.names(), store.complete_names()
    present: list[str] = []
    missing: list[str] = []
    for dataset in spec.family:
        stored = [name for name in known if name.partition(":")[0] == dataset]
        expected = [f"{dataset}:{split}" for split in load_spec(dataset).splits] if dataset in specs else []
        for name in dict.fromkeys((*expected, *stored)):
            if is_evaluation_split(name.partition(":")[2]):
                (present if name in whole else missing).append(name)
    return present, missing


def _image_ids(store: Store, names: Sequence[str]) -> set[str]:
    return {
        key
        for name in names
        for table in store.split(name).tables(["image_id"])
        for key in pc.unique(table["image_id"]).to_pylist()
    }


def _origins(
    store_path: Path,
    spec: DatasetSpec,
    wanted: Sequence[str],
    evaluated: Sequence[str],
    missing: Sequence[str],
    keep_leaks: bool,
) -> dict[str, dict[str, Any]]:
    """What each split depends on: equal origins give equal splits."""
    datasets = read_manifest(store_path)["datasets"]

    def contents(name: str) -> dict[str, Any]:
        dataset, _, split = name.partition(":")
        entry = datasets[dataset]["splits"][split]
        files = split_files(entry, where=name)
        return {"sha256": [file["sha256"] for file in files], "images_at": entry.get("images_at")}

    shared = {
        "family": list(spec.family),
        "keep_leaks": keep_leaks,
        "evaluation": {name: contents(name)["sha256"] for name in evaluated},
        "missing_evaluation": list(missing),
        "refcli": refcli.__version__,
    }
    return {
        split: {"mixture": [{"member": name, **contents(name)} for name in spec.mixture[split]], **shared}
        for split in wanted
    }


def _is_unchanged(store_path: Path, name: str, origins: Mapping[str, Mapping[str, Any]], *, strict: bool) -> bool:
    splits = read_manifest(store_path)["datasets"].get(name, {"splits": {}})["splits"]
    return (store_path / name / EVAL_IMAGE_KEYS).is_file() and all(
        split in splits
        and splits[split].get("origin") == origin
        and "parts" not in splits[split]
        and is_in_place(store_path, splits[split])
        and not (strict and splits[split].get("outcome", {}).get("refused_if_strict", True))
        for split, origin in origins.items()
    )


def _refused_if_strict(name: str, counts: Sequence[CountCheck], store_path: Path) -> DataError | None:
    wrong = next((check for check in counts if check.is_certain and not check.agrees), None)
    if wrong is None:
        return None
    return DataError(
        f"{name}:{wrong.split} has {wrong.found:,} {wrong.what}, {wrong.expected:,} are expected",
        where=str(store_path),
        hint="a member is not as published; without --strict it is taken as it is",
    )


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
