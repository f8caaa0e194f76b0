"""prepare-data: read the files of data sets, check them, and write them into a store."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from refcli.data.preparation.counting import CountCheck, check_counts
from refcli.data.preparation.dataset_images import FileNames, Pictures
from refcli.data.preparation.finish import Finishing, storable
from refcli.data.preparation.origin import describe_origin, is_unchanged
from refcli.data.preparation.plan import Plan
from refcli.data.preparation.run import Prepared, Progress, Selected, paused_collector, run
from refcli.data.reading.json_files import parse_json
from refcli.data.shard import Shard
from refcli.data.sources.detect import refuse_foreign
from refcli.data.sources.record import Problems, RawRecord
from refcli.data.store.layout import MANIFEST, read_manifest
from refcli.data.store.write import Listing, SplitSummary, list_splits
from refcli.errors import DataError, ExitCode, UsageError
from refcli.files import is_plain_name, write_atomically

TOLERATED = frozenset(
    {
        "repaired_text",
        "empty_expression",
        "clipped_box",
        "crowd_region",
        "repeated_annotation",
        "mask_disagrees_with_box",
        "known_missing_image",
        "region_without_expression",
        "several_expression_keys",
        "image_without_phrase",
        "phrase_without_box",
        "phrase_without_box_chain_0",
        "phrase_without_box_scene",
        "phrase_without_box_nobndbox",
        "phrase_of_unrelated_caption",
        "caption_without_box",
        "left_out_detection",
        "unused_key",
        "caption_read_as_phrases",
        "caption_not_utf8",
    }
)
"""Problems that well-made releases have; any other ends a strict preparation."""
_IMAGE_PROBLEMS = ("missing_image", "image_of_another_size", "unusable_picture", "rotated_picture")
"""Problems that may be gone without a change of the data set's files."""
_HINTS = {
    "missing_image": "check --images",
    "image_of_another_size": "give the images that the annotations were made on, or annotations of these images",
    "rotated_box": "rotated boxes are not read: give the upright boxes around them",
    "inverted_box": "are the numbers left, top, width, height where corners are read, or the other way round?",
    "degenerate_box": "are the boxes fractions of the image instead of pixels?",
    "box_outside_the_image": "are the boxes in pixels of these images, and not of larger ones?",
}
"""What to look at where a kind of problem left nothing."""


@dataclass(frozen=True)
class Preparation:
    """How to prepare data sets; the same for all that are named."""

    out: Path
    """The store; made where it does not exist."""
    images: tuple[Path, ...] = ()
    """Folders, zips or tars to look for images in; none: images are not looked for."""
    splits: tuple[str, ...] | None = None
    """Only these; None for all."""
    workers: int = 1
    shard: Shard | None = None
    check_images: bool = False
    """Decode every image."""
    strict: bool = False
    """Any serious problem or count that differs ends the preparation before anything is published."""
    force: bool = False
    """Do again what is unchanged."""


@dataclass(frozen=True)
class DatasetReport:
    """What became of one data set."""

    dataset: str
    status: Literal["written", "unchanged"]
    splits: tuple[SplitSummary, ...] = ()
    counts: tuple[CountCheck, ...] = ()
    lost: Mapping[str, int] = field(default_factory=dict)
    """Expressions that were read but left out, by split."""
    problems: Problems = field(default_factory=Problems)
    seconds: float = 0.0
    lost_masks: Mapping[str, int] = field(default_factory=dict)
    """Splits most of whose masks are not in the store -> how many are not."""

    @property
    def exit_code(self) -> ExitCode:
        """`PARTIAL` if most of the masks of a split were lost; records that are left out and listed are no failure."""
        return ExitCode.PARTIAL if self.lost_masks else ExitCode.OK

    def to_json(self) -> dict[str, Any]:
        """Plain data for the report file and `--json`."""
        return {
            "dataset": self.dataset,
            "status": self.status,
            "splits": [asdict(split) for split in self.splits],
            "counts": [asdict(check) | {"agrees": check.agrees} for check in self.counts],
            "left_out": dict(self.lost),
            "lost_masks": dict(self.lost_masks),
            "problems": dict(self.problems.counts),
            "places": self.problems.places,
            "seconds": round(self.seconds, 3),
        }


def prepare(plan: Plan, how: Preparation, *, progress: Progress | None = None) -> DatasetReport:
    """Carry out a plan; splits that are already in the store stay, or are replaced by name.

    Raises:
        UsageError: the data set has a name that no folder of a store can have.
        DataError: unsafe, damaged or contradictory files; every image is missing; or, if strict, anything serious.
            The store is then as it was.
    """
    start = time.perf_counter()
    if not is_plain_name(plan.dataset) or plan.dataset == MANIFEST:
        raise UsageError(
            f"{plan.dataset!r} cannot be the name of a data set", where="--name", hint="use letters, digits and _-+."
        )
    for path in plan.files.values():
        refuse_foreign(path)
    origin = describe_origin(
        source=plan.source_name,
        settings=plan.settings,
        files=plan.files,
        images=how.images,
        check_images=how.check_images,
        splits=how.splits,
    )
    if (how.out / MANIFEST).exists():
        read_manifest(how.out)  # a store that cannot be added to is refused before hours of work
    report_path = how.out / plan.dataset / _report_name(how)
    if not _is_free_for_report(report_path):
        raise UsageError(
            "a file that refcli did not write has the name of the report",
            where=str(report_path),
            hint="move it, or give another --out or --name",
        )
    if not how.force and is_unchanged(how.out, plan.dataset, origin, part=how.shard, strict=how.strict):
        return DatasetReport(plan.dataset, "unchanged", seconds=time.perf_counter() - start)
    how.out.mkdir(parents=True, exist_ok=True)
    pictures = Pictures.unlooked()
    if how.images:
        pictures = Pictures.below(
            how.images,
            (record.image for record in Selected(_records(plan, Problems()), how.splits, how.shard)),
            extract_to=how.out / plan.dataset / "images",
            file_names=FileNames(lambda: (record.image for record in _records(plan, Problems()))),
        )
    problems = Problems()
    with ExitStack() as stack, paused_collector():
        prepared = run(
            Selected(_records(plan, problems), how.splits, how.shard),
            pictures,
            stack=stack,
            out=how.out,
            how=Finishing(plan.dataset, how.check_images),
            problems=problems,
            workers=how.workers,
            shard=how.shard,
            progress=progress,
        )
        counts: tuple[CountCheck, ...] = ()
        if plan.spec and not how.shard:
            settings = plan.settings.model_dump(mode="json")
            counts = tuple(check_counts(plan.spec, prepared.intake, settings=settings, splits=how.splits))
        _refuse_nothing(plan, prepared, how)
        contradiction = _contradiction(plan, prepared, is_strict=False)
        if contradiction is not None:
            raise contradiction
        _list_doubts(plan, prepared)
        refused = _refused_if_strict(plan, prepared, counts)
        if refused and how.strict:
            raise refused
        lost_masks = {split: one.lost_masks for split, one in prepared.evidence.items() if one.masks_are_lost}
        outcome = {
            "splits": sorted(summary.split for summary in prepared.summaries),
            "missing_images": sum(problems.counts[kind] for kind in _IMAGE_PROBLEMS),
            "lost_masks": sum(lost_masks.values()),
            "refused_if_strict": refused.message if refused else None,
        }
        finished = zip(prepared.summaries, prepared.writers, strict=True)
        root = _image_root(pictures, how.out)
        list_splits(
            how.out,
            [Listing(summary, root, origin, outcome, writer) for summary, writer in finished],
            part=how.shard,
        )
    report = DatasetReport(
        plan.dataset,
        "written",
        prepared.summaries,
        counts,
        dict(prepared.lost),
        prepared.problems,
        time.perf_counter() - start,
        lost_masks,
    )
    text = json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n"
    write_atomically(report_path, text.encode("utf-8", "backslashreplace"))
    return report


def _report_name(how: Preparation) -> str:
    shard = f".{how.shard.number}-of-{how.shard.total}" if how.shard else ""
    name = f"report.{'+'.join(how.splits)}{shard}.json" if how.splits else f"report{shard}.json"
    if is_plain_name(name):
        return name
    return f"report.{len(how.splits or ())}-splits-{sha256(name.encode()).hexdigest()[:12]}{shard}.json"


def _is_free_for_report(path: Path) -> bool:
    """Whether there is no file, or a report that may be replaced."""
    if not path.exists():
        return True
    try:
        report = parse_json(path.read_bytes(), dict[str, Any], where=str(path)) if path.is_file() else {}
    except (DataError, OSError):
        return False
    return report.keys() >= {"dataset", "status", "problems"}


def _records(plan: Plan, problems: Problems) -> Iterable[RawRecord]:
    records = plan.source.read(plan.files, plan.settings, dataset=plan.dataset, problems=problems)
    return storable(records, problems)


def _refuse_nothing(plan: Plan, prepared: Prepared, how: Preparation) -> None:
    missing = [split for split in how.splits or () if split not in prepared.intake]
    if missing and how.shard is None:
        raise UsageError(
            f"{plan.dataset} has no split {missing[0]!r}",
            where="--split",
            hint="it has: " + (", ".join(sorted(plan.spec.splits)) if plan.spec else "none of that name"),
        )
    if how.shard is not None:
        return
    written = {summary.split for summary in prepared.summaries}
    empty = [split for split in prepared.intake if split not in written]
    if written and not empty:
        return
    name = f"{plan.dataset}:{empty[0]}" if written else plan.dataset
    problems = prepared.problems
    kind = next((kind for kind in problems.counts if kind not in TOLERATED), next(iter(problems.counts), "no_record"))
    places = [place for place in problems.places.get(kind, ()) if kind not in TOLERATED or place]
    raise DataError(
        f"nothing of {name} can be used: {kind.replace('_', ' ')}, {problems.counts[kind]} times",
        where=next(iter([*places, *map(str, plan.files.values())])),
        hint=_HINTS.get(kind, "check the files"),
    )


def _contradiction(plan: Plan, prepared: Prepared, *, is_strict: bool) -> DataError | None:
    """Why the boxes of a split cannot be what they are read as."""
    for split, evidence in prepared.evidence.items():
        contradiction = evidence.contradiction(f"{plan.dataset}:{split}", is_strict=is_strict)
        if contradiction is not None:
            places = prepared.problems.places.get("mask_disagrees_with_box", [])
            contradiction.where = next(iter([*places, *map(str, plan.files.values())]))
            return contradiction
    return None


def _list_doubts(plan: Plan, prepared: Prepared) -> None:
    for split, evidence in prepared.evidence.items():
        doubt = evidence.doubt()
        if doubt is not None:
            prepared.problems.add("boxes_may_be_corners", f"{plan.dataset}:{split}", doubt)


def _refused_if_strict(plan: Plan, prepared: Prepared, counts: Sequence[CountCheck]) -> DataError | None:
    for check in counts:
        if not check.agrees and check.is_certain:
            return DataError(
                f"{plan.dataset}:{check.split} has {check.found:,} {check.what}, {check.expected:,} are expected",
                where=", ".join(map(str, plan.files.values())),
                hint="the files are not the published ones; without --strict they are taken as they are",
            )
    for kind, places in prepared.problems.places.items():
        if kind not in TOLERATED:
            return DataError(
                f"{plan.dataset}: {kind.replace('_', ' ')}, {prepared.problems.counts[kind]} times",
                where=places[0],
                hint="without --strict such records are left out and counted",
            )
    return _contradiction(plan, prepared, is_strict=True)


def _image_root(pictures: Pictures, out: Path) -> str | None:
    """The image root for the manifest: relative if it lies in the store, which can then be moved."""
    if pictures.base is None:
        return None
    store = out.resolve()
    inside = pictures.base.is_relative_to(store)
    return pictures.base.relative_to(store).as_posix() if inside else str(pictures.base)
