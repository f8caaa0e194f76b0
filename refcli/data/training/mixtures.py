"""Mixtures: combine splits of a store into new ones, without the images of evaluation splits."""

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
from refcli.data.preparation.counts import CountCheck, compare_counts, count_error
from refcli.data.preparation.plan import MixturePlan
from refcli.data.spec import DatasetSpec, is_evaluation_split, is_train_like, list_specs, load_spec
from refcli.data.store.layout import MANIFEST, SCHEMA, is_in_place, read_manifest, split_files
from refcli.data.store.read import Store, StoreSplit
from refcli.data.store.write import Listing, SplitSummary, SplitWriter, list_splits, new_split
from refcli.errors import DataError, UsageError
from refcli.files import write_atomically
from refcli.tables import did_you_mean

EVAL_IMAGE_KEYS = "eval_image_keys.txt"
"""File beside the splits of a mixture: the image ids that its training splits must not have, one per line, sorted."""


@dataclass
class MemberReport:
    """The contribution of one member to one split of a mixture."""

    split: str
    """The split of the mixture."""
    member: str
    """ "dataset:split"."""
    rows: int = 0
    """Rows of the member."""
    images: int = 0
    """Distinct image ids among them."""
    leaking_rows: int = 0
    """Rows of a training split whose image is in an evaluation split of the family."""
    leaking_images: int = 0
    dropped_rows: int = 0
    """The leaking rows; 0 if leaks were kept."""
    dropped_images: int = 0


@dataclass
class _Member:
    """A member split while it is copied."""

    store: StoreSplit
    report: MemberReport
    id_prefix: str
    image_prefix: str
    evaluated: pa.Array | None
    """Image ids of the evaluation splits of the family; None if the mixture's split is one itself."""
    images: set[str] = field(default_factory=set)
    leaking: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class MixtureReport:
    """The members of a mixture, and the omitted rows."""

    name: str
    keep_leaks: bool
    missing_evaluation: tuple[str, ...]
    """Evaluation splits of the family, as "dataset:split", that the store lacks: their images may be in the training
    splits."""
    status: Literal["written", "unchanged"] = "written"
    """If unchanged, the remaining fields are empty."""
    members: tuple[MemberReport, ...] = ()
    evaluation_images: int = 0
    """Distinct image ids in the family's evaluation splits."""
    counts: tuple[CountCheck, ...] = ()
    """If leaks were kept: images and expressions compared with the published counts."""
    summaries: tuple[SplitSummary, ...] = ()

    @property
    def dataset(self) -> str:
        """The name of the mixture."""
        return self.name

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {"dataset": self.name, **asdict(self)}


@dataclass(frozen=True)
class _Written:
    """One split of the mixture, finished but not yet published."""

    writer: SplitWriter
    summary: SplitSummary
    members: list[_Member]
    image_root: str

    def counts(self) -> dict[str, int]:
        """Counts with all leaking rows, under the names of data specifications."""
        return {
            "images": len(set[str]().union(*(member.images for member in self.members))),
            "expressions": sum(member.report.rows for member in self.members),
        }


def write_mixture(
    store_path: Path,
    plan: MixturePlan,
    *,
    strict: bool = False,
    force: bool = False,
    splits: Collection[str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> MixtureReport:
    """Combine splits of a store into a mixture, and list its splits in the manifest.

    One row group is in memory at a time. Rows keep their order, member after member. Ids are kept if they begin with
    the name of their data set and a slash, and get that prefix otherwise (all rows of a member or none). The image root
    of the mixture is the nearest common folder of those of its members. Also writes `EVAL_IMAGE_KEYS`. Nothing is
    published before all splits are finished.

    Args:
        store_path: the store that holds the members and receives the mixture.
        plan: the mixture.
        strict: if leaks are kept, refuse counts that differ from the published ones.
        force: repeat unchanged work.
        splits: the splits of the mixture to write; None for all.
        progress: called with (split of the mixture, rows done, rows in all).

    Raises:
        UsageError: the mixture has no such split.
        DataError: the plan is not a mixture; members, or required evaluation splits of the family, are not in the
            store; a split has no rows left; if strict, a count differs; the store is damaged. The store is then
            unchanged.
    """
    name, spec = plan.dataset, plan.spec
    wanted = _wanted_splits(name, spec, splits)
    known = Store(store_path).names() if (store_path / MANIFEST).is_file() else []
    needed = list(dict.fromkeys(member for split in wanted for member in spec.mixture[split]))
    _require(f"members of {name} are", [member for member in needed if member not in known], store_path)
    store = Store(store_path)
    present, missing = _evaluation_splits(spec, store)
    if any(is_train_like(split) for split in wanted) and not (plan.keep_leaks or plan.allow_missing):
        _require(
            f"evaluation splits, whose images {name} must not train on, are",
            missing,
            store_path,
            otherwise="; --allow-missing keeps their images, --reproduce-paper keeps all",
        )
    origins = _origins(store_path, plan, wanted, present, missing)
    if not force and _is_unchanged(store_path, name, origins, strict=strict):
        return MixtureReport(name, plan.keep_leaks, tuple(missing), "unchanged")
    keys = sorted(_image_ids(store, present))
    with ExitStack() as stack:
        written: dict[str, _Written] = {}
        for split in wanted:
            evaluated = None if is_evaluation_split(split) else pa.array(keys, pa.string())
            members, root = _open_members(store, split, spec.mixture[split], evaluated)
            writer = stack.enter_context(new_split(store_path, name, split))
            for table in _member_tables(members, plan, split, progress):
                writer.write(table)
            written[split] = _Written(writer, writer.finish(), members, root)
        found = {split: one.counts() for split, one in written.items()} if plan.keep_leaks else {}
        counts = compare_counts(spec.splits, found)
        refused = count_error(
            name,
            counts,
            where=str(store_path),
            hint="a member differs from the published one; without --strict it is used as it is",
        )
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
        keep_leaks=plan.keep_leaks,
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
            hint=f"first run: refcli prepare-data {names} --raw DIR --images DIR --out {store_path}{otherwise}",
        )


def _evaluation_splits(spec: DatasetSpec, store: Store) -> tuple[list[str], list[str]]:
    """Evaluation splits of the family: those in the store, and the expected ones that are missing or incomplete."""
    specs, known, complete = list_specs(), store.names(), store.complete_names()
    present: list[str] = []
    missing: list[str] = []
    for dataset in spec.family:
        stored = [name for name in known if name.partition(":")[0] == dataset]
        expected = [f"{dataset}:{split}" for split in load_spec(dataset).splits] if dataset in specs else []
        for name in dict.fromkeys((*expected, *stored)):
            if is_evaluation_split(name.partition(":")[2]):
                (present if name in complete else missing).append(name)
    return present, missing


def _image_ids(store: Store, names: Sequence[str]) -> set[str]:
    return {
        key
        for name in names
        for table in store.split(name).tables(["image_id"])
        for key in pc.unique(table["image_id"]).to_pylist()
    }


def _origins(
    store_path: Path, plan: MixturePlan, wanted: Sequence[str], evaluated: Sequence[str], missing: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Everything that each split depends on: equal origins give equal splits."""
    datasets = read_manifest(store_path)["datasets"]

    def contents(name: str) -> dict[str, Any]:
        dataset, _, split = name.partition(":")
        entry = datasets[dataset]["splits"][split]
        files = split_files(entry, where=name)
        return {"sha256": [file["sha256"] for file in files], "images_at": entry.get("images_at")}

    shared = {
        "family": list(plan.spec.family),
        "keep_leaks": plan.keep_leaks,
        "evaluation": {name: contents(name)["sha256"] for name in evaluated},
        "missing_evaluation": list(missing),
        "refcli": refcli.__version__,
    }
    return {
        split: {"mixture": [{"member": name, **contents(name)} for name in plan.spec.mixture[split]], **shared}
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


def _open_members(
    store: Store, split: str, names: Sequence[str], evaluated: pa.Array | None
) -> tuple[list[_Member], str]:
    """The members of a split, and their common image root for the manifest."""
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
    """The image root, absolute and without `..`; for roots inside the store, links to the store are resolved."""
    root = split.image_root
    if root.is_relative_to(store_path):
        root = home / root.relative_to(store_path)
    return os.path.normpath(root.absolute())


def _id_prefix(split: StoreSplit, *, several_splits: bool) -> str:
    """The prefix that makes the ids of a member differ from all others; names have no slash."""
    dataset, _, part = split.name.partition(":")
    prefix = f"{dataset}/{part}/" if several_splits else f"{dataset}/"
    has_it = all(pc.all(pc.starts_with(table["id"], prefix)).as_py() for table in split.tables(["id"]))
    return "" if has_it else prefix


def _member_tables(
    members: Sequence[_Member], plan: MixturePlan, split: str, progress: Callable[[str, int, int], None] | None
) -> Iterator[pa.Table]:
    """The rows of a split of the mixture, one row group at a time; also updates the members' reports."""
    total = sum(len(member.store) for member in members)
    done = 0
    for member in members:
        for table in member.store.tables():
            done += len(table)
            yield _renamed(_without_leaks(table, member, plan.keep_leaks), member, plan.dataset, split)
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
