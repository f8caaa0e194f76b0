"""prepare-data: read, mix or generate data sets, check them, and write them into a store."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from refcli.data.preparation.counts import CountCheck, check_counts, count_error
from refcli.data.preparation.dataset_images import DatasetImages, FileNames
from refcli.data.preparation.finish import FinishSettings, storable
from refcli.data.preparation.labels import (
    CLASS_WITHOUT_NOUN,
    NO_CERTAIN_EXPRESSION,
    NO_LABELS,
    LabelSurvey,
    survey_labels,
)
from refcli.data.preparation.origin import describe_origin, is_unchanged
from refcli.data.preparation.plan import FilePlan, GeneratedPlan, MixturePlan, Plan
from refcli.data.preparation.run import Progress, SelectedRecords, UnpublishedSplits, paused_collector, write_splits
from refcli.data.reading.json_files import parse_json
from refcli.data.shard import Shard
from refcli.data.sources.detect import refuse_foreign
from refcli.data.sources.labels import TEMPLATE, LabelSettings
from refcli.data.sources.record import Problems, RawRecord
from refcli.data.sources.table import GENERATORS
from refcli.data.store.layout import MANIFEST, read_manifest
from refcli.data.store.write import Listing, SplitSummary, list_splits
from refcli.data.training.mixtures import MixtureReport, write_mixture
from refcli.errors import DataError, ExitCode, UsageError
from refcli.files import is_plain_name, write_atomically
from refcli.tables import lookup

TOLERATED = frozenset(
    {
        "repaired_text",
        "empty_expression",
        "clipped_box",
        "crowd_region",
        "repeated_annotation",
        "no_target_with_annotations",
        "box_without_extent",
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
        "split_of_two_papers",
        "caption_not_utf8",
        "read_as_train",
        CLASS_WITHOUT_NOUN,
        NO_CERTAIN_EXPRESSION,
        NO_LABELS,
    }
)
"""Problems that occur in sound releases; any other ends a strict preparation."""
_IMAGE_PROBLEMS = ("missing_image", "image_of_another_size", "unusable_picture", "rotated_picture")
"""Problems that can disappear without a change of the data set's files."""
_HINTS = {
    NO_CERTAIN_EXPRESSION: "the objects may be very small, or the class names not nouns: try --expressions category",
    "missing_image": "check --images",
    "image_of_another_size": "give the images that the annotations were made on, or annotations of these images",
    "rotated_box": "rotated boxes are not read: give the upright boxes around them",
    "inverted_box": "are the numbers left, top, width, height where corners are read, or the other way round?",
    "degenerate_box": "are the boxes fractions of the image instead of pixels?",
    "box_outside_the_image": "are the boxes in pixels of these images, and not of larger ones?",
}
"""Kind of problem -> hint if it left no usable record."""


@dataclass(frozen=True)
class Preparation:
    """Settings that all data sets of one call share.

    Raises:
        UsageError: `out` is a file, or a split is named twice.
    """

    out: Path
    """The store; created if missing."""
    images: tuple[Path, ...] = ()
    """Folders, zips or tars that hold the images; empty: images are not searched for."""
    splits: tuple[str, ...] | None = None
    """Only these; None for all."""
    workers: int = 1
    shard: Shard | None = None
    check_images: bool = False
    """Decode every image."""
    strict: bool = False
    """Fail on any serious problem or wrong count, before anything is published."""
    force: bool = False
    """Repeat unchanged work."""

    def __post_init__(self) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise UsageError("the store must be a directory", where=f"--out {self.out}", hint="name another place")
        if self.splits and len(set(self.splits)) < len(self.splits):
            raise UsageError(f"a split is named twice: {', '.join(self.splits)}", where="--split")


@dataclass(frozen=True)
class DatasetReport:
    """The result for a data set that is read from files."""

    dataset: str
    status: Literal["written", "unchanged"]
    splits: tuple[SplitSummary, ...] = ()
    counts: tuple[CountCheck, ...] = ()
    lost: Mapping[str, int] = field(default_factory=dict)
    """Expressions that were read but left out, by split."""
    problems: Problems = field(default_factory=Problems)
    seconds: float = 0.0
    lost_masks: Mapping[str, int] = field(default_factory=dict)
    """Splits that lost most of their masks -> number of lost masks."""
    labelled_images: int | None = None
    """Images about which expressions were to be written; None: the files have expressions."""
    kinds: Mapping[str, int] = field(default_factory=dict)
    """Number of the written expressions by kind."""

    @property
    def exit_code(self) -> ExitCode:
        """`PARTIAL` if a split lost most of its masks; omitted records alone are not a failure."""
        return ExitCode.PARTIAL if self.lost_masks else ExitCode.OK

    def to_json(self) -> dict[str, Any]:
        """Plain data for the report file and `--json`."""
        written = {"labelled_images": self.labelled_images, "kinds": dict(self.kinds)}
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
        } | ({} if self.labelled_images is None else written)


@dataclass(frozen=True)
class GeneratedReport:
    """The result for a generated data set."""

    dataset: str
    splits: tuple[SplitSummary, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {"dataset": self.dataset, "status": "written", "splits": [asdict(split) for split in self.splits]}


Report = DatasetReport | MixtureReport | GeneratedReport


def prepare(plan: Plan, preparation: Preparation, *, progress: Progress | None = None) -> Report:
    """Carry out a plan; splits that are already in the store stay, or are replaced by name.

    Raises:
        UsageError: the data set's name cannot be a folder name, or it has no such split.
        DataError: unsafe, damaged or contradictory files; all images are missing; members of a mixture are missing; or,
            if strict, any serious problem. The store is then unchanged.
    """
    if isinstance(plan, FilePlan):
        return prepare_files(plan, preparation, progress=progress)
    if isinstance(plan, MixturePlan):
        return write_mixture(
            preparation.out,
            plan,
            strict=preparation.strict,
            force=preparation.force,
            splits=preparation.splits,
            progress=progress,
        )
    return _generate(plan, preparation, progress)


def _generate(plan: GeneratedPlan, preparation: Preparation, progress: Progress | None) -> GeneratedReport:
    write = lookup(GENERATORS, plan.dataset, what="data set")
    summaries = write(
        preparation.out,
        size=plan.size,
        splits=preparation.splits,
        workers=preparation.workers,
        settings=plan.settings,
        progress=progress,
    )
    return GeneratedReport(plan.dataset, summaries)


def prepare_files(plan: FilePlan, preparation: Preparation, *, progress: Progress | None = None) -> DatasetReport:
    """Prepare a data set that is read from files; see `prepare`."""
    start = time.perf_counter()
    out, shard = preparation.out, preparation.shard
    report_path = out / plan.dataset / _report_name(preparation)
    _check_place(plan, out, report_path)
    for path in plan.files.values():
        refuse_foreign(path, plan.source_name)
    origin = describe_origin(
        source=plan.source_name,
        settings=plan.settings,
        files=plan.inputs,
        images=preparation.images,
        check_images=preparation.check_images,
        splits=preparation.splits,
        hub=plan.hub,
    )
    is_done = not preparation.force and is_unchanged(out, plan.dataset, origin, part=shard, strict=preparation.strict)
    if is_done:
        return DatasetReport(plan.dataset, "unchanged", seconds=time.perf_counter() - start)
    out.mkdir(parents=True, exist_ok=True)
    images = _find_images(plan, preparation)
    problems = Problems()
    survey = _survey(plan, problems)
    with ExitStack() as stack, paused_collector():
        splits = write_splits(
            SelectedRecords(_read(plan, problems), preparation.splits, shard),
            images,
            FinishSettings(plan.dataset, preparation.check_images, survey),
            out=out,
            stack=stack,
            problems=problems,
            workers=preparation.workers,
            progress=progress,
        )
        counts = _check_counts(plan, splits, preparation)
        refused = _check_splits(plan, splits, counts, preparation)
        lost_masks = {split: one.lost_masks for split, one in splits.evidence.items() if one.masks_are_lost}
        outcome = {
            "splits": sorted(summary.split for summary in splits.summaries),
            "missing_images": sum(problems.counts[kind] for kind in _IMAGE_PROBLEMS),
            "lost_masks": sum(lost_masks.values()),
            "refused_if_strict": refused.message if refused else None,
        }
        root = _image_root(images, out)
        finished = zip(splits.summaries, splits.writers, strict=True)
        list_splits(out, [Listing(summary, root, origin, outcome, writer) for summary, writer in finished], part=shard)
    report = DatasetReport(
        dataset=plan.dataset,
        status="written",
        splits=splits.summaries,
        counts=counts,
        lost=dict(splits.lost),
        problems=splits.problems,
        seconds=time.perf_counter() - start,
        lost_masks=lost_masks,
        labelled_images=None if survey is None else sum(len(one.images) for one in splits.intake.values()),
        kinds=dict(splits.kinds.most_common()),
    )
    text = json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n"
    write_atomically(report_path, text.encode("utf-8", "backslashreplace"))
    return report


def _survey(plan: FilePlan, problems: Problems) -> LabelSurvey | None:
    """What is known of all labels, if refcli writes the expressions."""
    settings = plan.settings
    if not isinstance(settings, LabelSettings) or settings.expressions != TEMPLATE:
        return None
    return survey_labels(_read(plan, Problems()), settings, problems, where=", ".join(map(str, plan.files.values())))


def _check_place(plan: FilePlan, out: Path, report_path: Path) -> None:
    """Refuse a store that the data set cannot be added to, before hours of work."""
    if not is_plain_name(plan.dataset) or plan.dataset == MANIFEST:
        raise UsageError(
            f"{plan.dataset!r} cannot be the name of a data set", where="--name", hint="use letters, digits and _-+."
        )
    if (out / MANIFEST).exists():
        read_manifest(out)
    if not _is_free_for_report(report_path):
        raise UsageError(
            "a file that refcli did not write has the name of the report",
            where=str(report_path),
            hint="move it, or give another --out or --name",
        )


def _report_name(preparation: Preparation) -> str:
    splits, part = preparation.splits, preparation.shard
    shard = f".{part.number}-of-{part.total}" if part else ""
    name = f"report.{'+'.join(splits)}{shard}.json" if splits else f"report{shard}.json"
    if is_plain_name(name):
        return name
    return f"report.{len(splits or ())}-splits-{sha256(name.encode()).hexdigest()[:12]}{shard}.json"


def _is_free_for_report(path: Path) -> bool:
    """Whether a path does not exist, or is a report that may be replaced."""
    if not path.exists():
        return True
    try:
        report = parse_json(path.read_bytes(), dict[str, Any], where=str(path)) if path.is_file() else {}
    except (DataError, OSError):
        return False
    return report.keys() >= {"dataset", "status", "problems"}


def _find_images(plan: FilePlan, preparation: Preparation) -> DatasetImages:
    extract_to = preparation.out / plan.dataset / "images"
    if not preparation.images:
        return DatasetImages.not_searched(extract_to=extract_to)
    selected = SelectedRecords(_read_names(plan), preparation.splits, preparation.shard)
    return DatasetImages.below(
        preparation.images,
        (record.image for record in selected),
        extract_to=extract_to,
        file_names=FileNames(lambda: (record.image for record in _read_names(plan))),
        are_in_annotations=plan.source.read_names is not None,
    )


def _read(plan: FilePlan, problems: Problems) -> Iterable[RawRecord]:
    records = plan.source.read(plan.files, plan.settings, dataset=plan.dataset, problems=problems)
    return storable(records, problems)


def _read_names(plan: FilePlan) -> Iterable[RawRecord]:
    """The records for the names of their images: without those whose images are in the annotation files."""
    read = plan.source.read_names or plan.source.read
    problems = Problems()
    return storable(read(plan.files, plan.settings, dataset=plan.dataset, problems=problems), problems)


def _check_counts(plan: FilePlan, splits: UnpublishedSplits, preparation: Preparation) -> tuple[CountCheck, ...]:
    if plan.spec is None or preparation.shard is not None:
        return ()
    settings = plan.settings.model_dump(mode="json")
    return tuple(check_counts(plan.spec, splits.intake, settings=settings, splits=preparation.splits))


def _check_splits(
    plan: FilePlan, splits: UnpublishedSplits, counts: Sequence[CountCheck], preparation: Preparation
) -> DataError | None:
    """Report doubts about the boxes; returns the error of a strict preparation, if any.

    Raises:
        UsageError: a wanted split does not exist.
        DataError: a split has no usable record, or its boxes contradict its masks; if strict, any serious problem.
    """
    _refuse_empty(plan, splits, preparation)
    contradiction = _contradiction(plan, splits, is_strict=False)
    if contradiction is not None:
        raise contradiction
    for split, evidence in splits.evidence.items():
        doubt = evidence.doubt()
        if doubt is not None:
            splits.problems.add("boxes_may_be_corners", f"{plan.dataset}:{split}", doubt)
    refused = _refused_if_strict(plan, splits, counts)
    if refused is not None and preparation.strict:
        raise refused
    return refused


def _hint_at_splits(plan: FilePlan) -> str:
    if plan.spec is not None:
        return "it has: " + ", ".join(sorted(plan.spec.splits))
    if "split" in type(plan.settings).model_fields:
        return "no row is of that split; --set split=NAME gives all rows one"
    return "it has: none of that name"


def _refuse_empty(plan: FilePlan, splits: UnpublishedSplits, preparation: Preparation) -> None:
    if preparation.shard is not None:
        return
    missing = [split for split in preparation.splits or () if split not in splits.intake]
    if missing:
        raise UsageError(
            f"{plan.dataset} has no split {missing[0]!r}",
            where="--split",
            hint=_hint_at_splits(plan),
        )
    written = {summary.split for summary in splits.summaries}
    empty = [split for split in splits.intake if split not in written]
    if written and not empty:
        return
    name = f"{plan.dataset}:{empty[0]}" if written else plan.dataset
    problems = splits.problems
    kind = next((kind for kind in problems.counts if kind not in TOLERATED), next(iter(problems.counts), "no_record"))
    reason = f"{kind.replace('_', ' ')}, {problems.counts[kind]} times" if problems.counts else "there is none"
    places = [place for place in problems.places.get(kind, ()) if kind not in TOLERATED or place]
    raise DataError(
        f"no record of {name} can be used: {reason}",
        where=next(iter([*places, *map(str, plan.files.values())])),
        hint=_HINTS.get(kind, "check the files"),
    )


def _contradiction(plan: FilePlan, splits: UnpublishedSplits, *, is_strict: bool) -> DataError | None:
    """The error if the boxes of a split cannot have the format in which they were read."""
    for split, evidence in splits.evidence.items():
        contradiction = evidence.contradiction(f"{plan.dataset}:{split}", is_strict=is_strict)
        if contradiction is not None:
            places = splits.problems.places.get("mask_disagrees_with_box", [])
            contradiction.where = next(iter([*places, *map(str, plan.files.values())]))
            return contradiction
    return None


def _refused_if_strict(plan: FilePlan, splits: UnpublishedSplits, counts: Sequence[CountCheck]) -> DataError | None:
    wrong_count = count_error(
        plan.dataset,
        counts,
        where=", ".join(map(str, plan.files.values())),
        hint="the files are not the published ones; without --strict they are used as they are",
    )
    if wrong_count is not None:
        return wrong_count
    for kind, places in splits.problems.places.items():
        if kind not in TOLERATED:
            return DataError(
                f"{plan.dataset}: {kind.replace('_', ' ')}, {splits.problems.counts[kind]} times",
                where=places[0],
                hint="without --strict such records are left out and counted",
            )
    return _contradiction(plan, splits, is_strict=True)


def _image_root(images: DatasetImages, out: Path) -> str | None:
    """The image root for the manifest: relative if it lies in the store, which can then be moved."""
    if images.base is None:
        return None
    store = out.resolve()
    inside = images.base.is_relative_to(store)
    return images.base.relative_to(store).as_posix() if inside else str(images.base)
