"""Scores of many samples as columns: an Arrow table to store, numpy arrays for the metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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
    "error": pa.string(),
    "counts": pa.bool_(),
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
    "kept": pa.int32(),
    "matched_iou": pa.int32(),
    "matched_giou": pa.int32(),
    "rank_any": pa.int32(),
    "rank_union": pa.int32(),
    "truth_has_masks": pa.bool_(),
    "mask_iou": pa.float64(),
}
"""Columns that are fields of `SampleScore`."""
ADDED = ("states_none", "num_framed", "is_gated")
"""Columns that files of earlier versions do not have."""
MAY_BE_NULL = ("error", "states_none")
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
    for name in ("box_iou", "box_iou_oneref384"):
        if not np.all(np.isnan(columns[name]) | (np.abs(columns[name].to_numpy() - 0.5) <= 0.5 + _ROUNDING)):
            raise ValueError(f"the column {name!r} has numbers beyond 0..1")
    for frame in frames:
        intersection, union, truth = (columns[name].to_numpy() for name in overlap_columns(frame))
        if (intersection > truth).any() or (truth > union).any() or (union > _MOST_PIXELS).any():
            raise ValueError(f"pixel counts of the frame {frame!r} contradict each other")
    checked = pa.table(columns)
    checked.validate(full=True)
    return checked


def gated_table(table: pa.Table) -> pa.Table:
    """The same samples after the gate: a wrong "no target" discards boxes and masks."""
    is_wrong_none = _existence(table)[0] & (table["num_targets"].to_numpy() > 0) & table["error"].is_null().to_numpy()
    columns = {name: table[name] for name in table.column_names}
    columns["is_gated"] = pa.array(is_wrong_none)
    for name in ("rank_any", "rank_union", *(name for name in columns if name.startswith("intersection"))):
        columns[name] = pc.if_else(is_wrong_none, pa.scalar(0, TYPES.get(name, pa.int64())), columns[name])
    for name in ("box_iou", "box_iou_oneref384"):
        iou = columns[name].to_numpy()
        columns[name] = pa.array(np.where(is_wrong_none & ~np.isnan(iou), 0.0, iou))
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
class ScoreColumns:
    """The samples that count, as numpy arrays; `SampleScore` describes the fields."""

    image: np.ndarray
    """int64: samples of the same image have the same number."""
    kind: np.ndarray
    num_words: np.ndarray
    num_targets: np.ndarray
    box_share: np.ndarray
    says_none: np.ndarray
    """Whether each answer is "no target"; an answer without any target counts as one. A system that states "no target"
    for any sample of the split, or gives a probability, thereby states for the others that there is a target, even if
    their masks are empty."""
    knows_existence: np.ndarray
    """Whether the system judges existence; see `says_none`."""
    box_iou: np.ndarray
    box_iou_oneref384: np.ndarray
    kept: np.ndarray
    matched_iou: np.ndarray
    matched_giou: np.ndarray
    rank_any: np.ndarray
    rank_union: np.ndarray
    mask_is_known: np.ndarray
    """Whether the sample is in mask metrics: all its regions have masks, the split has regions with masks (or no
    regions at all), and the system draws any mask in this split (or finds nothing at all). A mask that is missing
    from a system that draws masks is an empty one."""
    overlaps: Mapping[str, MaskOverlaps]
    """By frame."""

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
            name: table[name].to_numpy()
            for name, kind in TYPES.items()
            if name in cls.__dataclass_fields__ and not pa.types.is_string(kind)
        } | {"says_none": says_none, "knows_existence": knows_existence}
        frames = [
            name.removeprefix("union").removeprefix("_") or IMAGE for name in table.column_names if _is_union(name)
        ]
        return cls(
            image=_numbered(table["image"].to_pylist()),
            kind=np.array(table["kind"].to_pylist(), dtype=np.object_),
            mask_is_known=_masks_known(table),
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
        columns = {name: getattr(self, name)[rows] for name in self.__dataclass_fields__ if name != "overlaps"}
        overlaps = {
            frame: MaskOverlaps(part.intersection[rows], part.union[rows], part.truth[rows])
            for frame, part in self.overlaps.items()
        }
        return ScoreColumns(overlaps=overlaps, **columns)


def _numbered(names: list[str]) -> np.ndarray:
    """A number for each name, in the order of the names."""
    number = {name: at for at, name in enumerate(sorted(set(names)))}
    return np.array([number[name] for name in names], dtype=np.int64)


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
