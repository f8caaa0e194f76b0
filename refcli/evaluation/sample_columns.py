"""Scores of many samples as columns: an Arrow table to store, numpy arrays for the metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refcli.evaluation.box_matches import TEN_THRESHOLDS
from refcli.evaluation.mask_frames import IMAGE, MaskOverlap
from refcli.evaluation.sample_score import SampleScore

ROWS_AT_ONCE = 4096
_ROUNDING = 1e-9
_MOST_PIXELS = 1 << 40
TYPES: Mapping[str, pa.DataType] = {
    "id": pa.string(),
    "image": pa.string(),
    "kind": pa.string(),
    "num_words": pa.int32(),
    "num_targets": pa.int32(),
    "box_share": pa.float64(),
    "box_side": pa.float64(),
    "expression": pa.int64(),
    "error": pa.string(),
    "counts": pa.bool_(),
    "is_parse_failure": pa.bool_(),
    "says_none": pa.bool_(),
    "states_none": pa.bool_(),
    "knows_existence": pa.bool_(),
    "no_target_score": pa.float64(),
    "num_found": pa.int32(),
    "num_drawn": pa.int32(),
    "num_from_mask": pa.int32(),
    "num_framed": pa.int32(),
    "is_gated": pa.bool_(),
    "box_iou": pa.float64(),
    "box_iou_oneref384": pa.float64(),
    "box_iou_first": pa.float64(),
    "hits_centre": pa.bool_(),
    "kept": pa.int32(),
    "matched_iou": pa.int32(),
    "matched_giou": pa.int32(),
    "matched_in_order50": pa.int32(),
    "matched_in_order": pa.int32(),
    "matched_best50": pa.int32(),
    "matched_best": pa.int32(),
    "matched_masks": pa.int32(),
    "best_score": pa.float64(),
    "box_scores": pa.list_(pa.float64()),
    "box_hits": pa.list_(pa.int16()),
    "rank_any": pa.int32(),
    "rank_union": pa.int32(),
    "truth_has_masks": pa.bool_(),
    "mask_iou": pa.float64(),
}
"""Columns that are fields of `SampleScore`."""
UNKNOWN_EARLIER = (
    "box_side",
    "expression",
    "box_iou_first",
    "hits_centre",
    "matched_in_order50",
    "matched_in_order",
    "matched_best50",
    "matched_best",
    "matched_masks",
    "best_score",
    "box_scores",
    "box_hits",
)
"""Columns that files of earlier versions do not have; they are null there, and their metrics are not measured."""
ADDED = ("is_parse_failure", "states_none", "num_framed", "is_gated", *UNKNOWN_EARLIER)
"""Columns that files of earlier versions do not have."""
MAY_BE_NULL = ("error", "states_none", *UNKNOWN_EARLIER)
ROW = "row"
"""Index of the sample in its split."""


def check_table(table: pa.Table, frames: Sequence[str]) -> pa.Table:
    """Check the columns of a table from outside: right types and plausible values.

    Args:
        table: `ROW`, `TYPES` (except that `ADDED` may be missing) and the counts of the frames; others are dropped.
        frames: the required frames.

    Raises:
        ValueError: a column is missing, or holds values that no evaluation writes.
        pa.ArrowException: a column is of another type, or damaged.
    """
    counts = {name: pa.int64() for frame in frames for name in overlap_columns(frame)}
    columns = {}
    for name, kind in {ROW: pa.int64(), **TYPES, **counts}.items():
        if name not in table.column_names:
            if name in ADDED:
                continue
            raise ValueError(f"there is no column {name!r}")
        column = table[name].cast(kind)
        if column.null_count and name not in MAY_BE_NULL:
            raise ValueError(f"the column {name!r} has nulls")
        if pa.types.is_integer(kind) and (pc.min(column).as_py() or 0) < 0:
            raise ValueError(f"the column {name!r} has numbers below 0")
        columns[name] = column
    for name in ("box_iou", "box_iou_oneref384", "box_iou_first"):
        iou = columns[name].to_numpy() if name in columns else np.empty(0)
        if not np.all(np.isnan(iou) | (np.abs(iou - 0.5) <= 0.5 + _ROUNDING)):
            raise ValueError(f"the column {name!r} has numbers beyond 0..1")
    _check_detections(columns)
    for frame in frames:
        intersection, union, truth = (columns[name].to_numpy() for name in overlap_columns(frame))
        if (intersection > truth).any() or (truth > union).any() or (union > _MOST_PIXELS).any():
            raise ValueError(f"pixel counts of the frame {frame!r} contradict each other")
    checked = pa.table(columns)
    checked.validate(full=True)
    return checked


def _check_detections(columns: Mapping[str, pa.ChunkedArray]) -> None:
    """Check that boxes have a score and hits each, and hits are bits of the ten thresholds."""
    if not {"box_scores", "box_hits"} <= columns.keys():
        return
    lengths = [pc.list_value_length(columns[name]).fill_null(0) for name in ("box_scores", "box_hits")]
    if not lengths[0].equals(lengths[1]):
        raise ValueError("the columns 'box_scores' and 'box_hits' have different numbers of boxes")
    hits = pc.list_flatten(columns["box_hits"])
    if hits.null_count or not np.all((hits.to_numpy() >= 0) & (hits.to_numpy() < 1 << len(TEN_THRESHOLDS))):
        raise ValueError("the column 'box_hits' has hits at unknown thresholds")


def gated_table(table: pa.Table) -> pa.Table:
    """The same samples after the gate: a wrong "no target" discards boxes and masks."""
    is_wrong_none = _existence(table)[0] & (table["num_targets"].to_numpy() > 0) & table["error"].is_null().to_numpy()
    columns = {name: table[name] for name in table.column_names}
    columns["is_gated"] = pa.array(is_wrong_none)
    for name in ("rank_any", "rank_union", *(name for name in columns if name.startswith("intersection"))):
        columns[name] = pc.if_else(is_wrong_none, pa.scalar(0, TYPES.get(name, pa.int64())), columns[name])
    for name in ("box_iou", "box_iou_oneref384", "box_iou_first"):
        iou = columns[name]
        columns[name] = pc.if_else(pc.and_(is_wrong_none, pc.invert(pc.is_nan(iou))), 0.0, iou)
    columns["hits_centre"] = pc.and_(columns["hits_centre"], pc.invert(is_wrong_none))
    for name in ("box_scores", "box_hits"):
        columns[name] = pc.if_else(is_wrong_none, pa.scalar([], TYPES[name]), columns[name])
    for name in filter(_is_union, list(columns)):
        columns[name] = pc.if_else(is_wrong_none, columns[name.replace("union", "truth")], columns[name])
    return pa.table(columns).select(table.column_names)


def overlap_columns(frame: str) -> tuple[str, ...]:
    """Names of the three columns of pixel counts of a frame; the suffix is the frame, none for the image."""
    return tuple(part if frame == IMAGE else f"{part}_{frame}" for part in MaskOverlap._fields)


class ScoreTable:
    """Collects scored samples; every few thousand rows become Arrow buffers.

    Args:
        frames: the frames that every sample has pixel counts for.
    """

    def __init__(self, frames: Sequence[str]) -> None:
        counts = [(name, pa.int64()) for frame in frames for name in overlap_columns(frame)]
        self._frames = tuple(frames)
        self._schema = pa.schema([(ROW, pa.int64()), *TYPES.items(), *counts])
        self._rows: list[tuple[int, SampleScore]] = []
        self._batches: list[pa.RecordBatch] = []

    def add(self, row: int, sample: SampleScore) -> None:
        """Add sample `row` of the split; samples may be added in any order."""
        self._rows.append((row, sample))
        if len(self._rows) >= ROWS_AT_ONCE:
            self._flush()

    def finish(self) -> pa.Table:
        """All samples, in the order of their split."""
        self._flush()
        return pa.Table.from_batches(self._batches, schema=self._schema).sort_by(ROW)

    def _flush(self) -> None:
        columns = [[row for row, _ in self._rows]]
        columns += [[getattr(sample, name) for _, sample in self._rows] for name in TYPES]
        for frame in self._frames:
            overlaps = [sample.overlaps[frame] for _, sample in self._rows]
            columns += [[overlap[part] for overlap in overlaps] for part in range(len(MaskOverlap._fields))]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        self._rows.clear()


@dataclass(frozen=True)
class MaskOverlaps:
    """Pixel counts of many samples in one frame, int64."""

    intersection: np.ndarray
    union: np.ndarray
    truth: np.ndarray


@dataclass(frozen=True)
class Detections:
    """The answered boxes of some samples."""

    first: np.ndarray
    """Of each sample: the place of its first box among those of all samples."""
    count: np.ndarray
    """Of each sample: its number of boxes."""
    scores: np.ndarray
    hits: np.ndarray
    """Of all boxes; see `SampleScore.box_scores` and `SampleScore.box_hits`."""

    @classmethod
    def of(cls, table: pa.Table) -> Detections | None:
        """The boxes of a table; None if it is of an earlier version."""
        if any(table[name].null_count for name in ("box_scores", "box_hits")):
            return None
        count = pc.list_value_length(table["box_scores"]).to_numpy().astype(np.int64)
        scores, hits = (pc.list_flatten(table[name]).to_numpy() for name in ("box_scores", "box_hits"))
        return cls(np.cumsum(count) - count, count, scores, hits)

    def __getitem__(self, rows: np.ndarray) -> Detections:
        """The boxes of some samples."""
        return Detections(self.first[rows], self.count[rows], self.scores, self.hits)

    def by_box(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(place of the sample among the samples, score, hits) of each box, in the order of the samples."""
        sample = np.repeat(np.arange(len(self.count)), self.count)
        place = np.arange(len(sample)) - np.repeat(np.cumsum(self.count) - self.count, self.count)
        place += self.first[sample]
        return sample, self.scores[place], self.hits[place]


ROBUST_DATASETS = frozenset({"rrefcoco", "rrefcoco_plus", "rrefcocog"})
"""Data sets whose ids are `dataset/ref/sentence`, with sentences without a target about the object of a ref."""
IMAGES_PER_DESCRIPTION = 10
"""Expressions that are asked about this many images on average are descriptions of classes (D-cube has 100)."""


@dataclass(frozen=True)
class ScoreColumns:
    """The samples that count, as numpy arrays; `SampleScore` describes the fields.

    Columns that a file of an earlier version does not have are None.
    """

    image: np.ndarray
    """int64: samples of the same image have the same number."""
    kind: np.ndarray
    num_words: np.ndarray
    num_targets: np.ndarray
    box_share: np.ndarray
    box_side: np.ndarray | None
    expression: np.ndarray | None
    is_answered: np.ndarray
    """False for a missing answer that counts as wrong."""
    no_target_score: np.ndarray
    best_score: np.ndarray | None
    says_none: np.ndarray
    """Whether each answer is "no target"; an answer without any target counts as one. A system that states "no target"
    for any sample of the split, or gives a probability, thereby states for the others that there is a target, even if
    their masks are empty."""
    knows_existence: np.ndarray
    """Whether the system judges existence; see `says_none`."""
    box_iou: np.ndarray
    box_iou_oneref384: np.ndarray
    box_iou_first: np.ndarray | None
    hits_centre: np.ndarray | None
    kept: np.ndarray
    matched_iou: np.ndarray
    matched_giou: np.ndarray
    matched_in_order50: np.ndarray | None
    matched_in_order: np.ndarray | None
    matched_best50: np.ndarray | None
    matched_best: np.ndarray | None
    matched_masks: np.ndarray | None
    rank_any: np.ndarray
    rank_union: np.ndarray
    mask_is_known: np.ndarray
    """Whether the sample is in mask metrics: all its regions have masks, the split has regions with masks (or no
    regions at all), and the system draws any mask in this split (or finds nothing at all). A mask that is missing
    from a system that draws masks is an empty one."""
    overlaps: Mapping[str, MaskOverlaps]
    """By frame."""
    detections: Detections | None
    ref: np.ndarray
    """int64: sentences about the same object have the same number, in data sets of `ROBUST_DATASETS`; else -1."""
    has_sets: bool
    """Whether any sample of the split has several targets or several boxes with enough score."""
    has_descriptions: bool
    """Whether the expressions of the split are descriptions of classes, see `IMAGES_PER_DESCRIPTION`."""

    @classmethod
    def of(cls, samples: Iterable[SampleScore]) -> ScoreColumns:
        """The columns of single scores."""
        rows = list(samples)
        table = ScoreTable(tuple(rows[0].overlaps) if rows else (IMAGE,))
        for number, row in enumerate(rows):
            table.add(number, row)
        return cls.from_table(table.finish())

    @classmethod
    def from_table(cls, table: pa.Table) -> ScoreColumns:
        """The rows of one split that count."""
        table = table.filter(table["counts"])
        says_none, knows_existence = _existence(table)
        columns = {
            name: None if name in UNKNOWN_EARLIER and table[name].null_count else table[name].to_numpy()
            for name, kind in TYPES.items()
            if name in cls.__dataclass_fields__ and not pa.types.is_string(kind)
        } | {"says_none": says_none, "knows_existence": knows_existence}
        frames = [
            name.removeprefix("union").removeprefix("_") or IMAGE for name in table.column_names if _is_union(name)
        ]
        return cls(
            image=_numbered(table["image"].to_pylist()),
            kind=np.array(table["kind"].to_pylist(), dtype=np.object_),
            is_answered=table["error"].is_null().to_numpy(),
            mask_is_known=_masks_known(table),
            detections=Detections.of(table),
            ref=_refs(table["id"].to_pylist()),
            has_sets=bool(((columns["num_targets"] > 1) | (columns["kept"] > 1)).any()),
            has_descriptions=_has_descriptions(columns["expression"]),
            overlaps={
                frame: MaskOverlaps(*(table[name].to_numpy() for name in overlap_columns(frame))) for frame in frames
            },
            **columns,
        )

    @property
    def has_target(self) -> np.ndarray:
        """Whether there is a target."""
        return self.num_targets > 0

    def __len__(self) -> int:
        return len(self.kind)

    def __getitem__(self, rows: np.ndarray) -> ScoreColumns:
        """The samples of a boolean mask or a list of row numbers."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "overlaps"}
        columns: dict[str, Any] = {
            name: value[rows] if isinstance(value, np.ndarray | Detections) else value for name, value in fields.items()
        }
        overlaps = {
            frame: MaskOverlaps(part.intersection[rows], part.union[rows], part.truth[rows])
            for frame, part in self.overlaps.items()
        }
        return ScoreColumns(overlaps=overlaps, **columns)


def _numbered(names: list[str]) -> np.ndarray:
    """A number for each name, in the order of the names."""
    number = {name: at for at, name in enumerate(sorted(set(names)))}
    return np.array([number[name] for name in names], dtype=np.int64)


def _refs(ids: list[str]) -> np.ndarray:
    """The number of each sentence's ref; -1 in data sets without refs."""
    if not ids or ids[0].partition("/")[0] not in ROBUST_DATASETS:
        return np.full(len(ids), -1, dtype=np.int64)
    return _numbered([ident.rpartition("/")[0] for ident in ids])


def _has_descriptions(expressions: np.ndarray | None) -> bool:
    if expressions is None or not len(expressions):
        return False
    return bool(len(expressions) >= IMAGES_PER_DESCRIPTION * len(np.unique(expressions)))


def _existence(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """(`says_none`, `knows_existence`) of every sample that counts."""
    says_none, knows = table["says_none"].to_numpy(), table["knows_existence"].to_numpy()
    is_answered = table["error"].is_null().to_numpy()
    states_none = table["states_none"].fill_null(False).to_numpy()
    if not (is_answered & (knows | states_none)).any():
        return says_none, knows
    states_nothing = table["states_none"].is_null().to_numpy() & (table["num_found"].to_numpy() > 0) & is_answered
    return says_none & ~states_nothing, knows | is_answered


def _masks_known(table: pa.Table) -> np.ndarray:
    has_masks, has_target = table["truth_has_masks"].to_numpy(), table["num_targets"].to_numpy() > 0
    draws = table["num_drawn"].to_numpy().any() or not table["num_found"].to_numpy().any()
    data_has_masks = (has_masks & has_target).any() or not has_target.any()
    known: np.ndarray = has_masks & bool(draws and data_has_masks)
    return known


def _is_union(name: str) -> bool:
    return name == "union" or name.startswith("union_")
