"""A scored run, sample by sample, and its Parquet file, which can be read, merged and compared."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from refcli.contracts.prediction import SCORE_THRESHOLD
from refcli.data.reading.json_files import parse_json
from refcli.errors import DataError
from refcli.evaluation.mask_frames import FRAMES
from refcli.evaluation.metrics.conventions import CONVENTIONS, ORIGINAL, frames_of
from refcli.evaluation.sample_columns import (
    ROW,
    TYPES,
    UNKNOWN_EARLIER,
    ScoreColumns,
    ScoreTable,
    check_table,
    gated_table,
    overlap_columns,
)
from refcli.files import write_atomically

PER_SAMPLE = "per_sample.parquet"
PER_SAMPLE_SCHEMA = "refcli.per_sample/1"
WRONG_SIZE = "wrong size"
"""The kind of rejected lines that only the part with the sample reports; every part finds all other kinds."""
MOST_LISTED = 50
"""Rejected lines of each kind that are quoted; all are counted."""
_FACTS = b"refcli"
"""Key of the facts about the run in the metadata of the file."""

MOST_UNPACKED = 1000
"""Largest ratio of unpacked to packed size; columns in which all values are equal take next to nothing."""

Missing: TypeAlias = Literal["error", "wrong"]
_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]


@dataclass(frozen=True)
class Scoring:
    """How samples are scored; runs with equal settings can be merged."""

    conventions: tuple[str, ...] = (ORIGINAL,)
    """Rows of `CONVENTIONS`, `original` first."""
    score_threshold: float = SCORE_THRESHOLD
    """Lowest score of the boxes that GREC counts."""
    missing: Missing = "error"
    """A sample without a usable answer is excluded as an error, or wrong in all metrics."""
    gated: bool = False
    """A wrong "no target" discards boxes and masks in all metrics, as for a user."""

    @property
    def frames(self) -> tuple[str, ...]:
        """The frames in which masks are compared."""
        return frames_of(self.conventions)

    def table(self) -> ScoreTable:
        """An empty table for samples that are scored this way."""
        return ScoreTable(self.frames)


@dataclass(frozen=True)
class RejectedLines:
    """The rejected lines of a prediction file of one kind."""

    count: int
    first: tuple[str, ...]
    """The first of them, as `file:line: reason`."""


@dataclass(frozen=True)
class SplitScores:
    """The scores of one split, or of a part of it."""

    name: str
    """`dataset:split`."""
    table: pa.Table
    """One row per sample of the part; see `ScoreTable`."""
    size: int
    """Samples to score in all parts together."""
    total: int
    """Samples of the split."""
    seconds: float
    all_gated: bool = False
    """Whether `gated_run` has gated all metrics."""

    @property
    def num_gated(self) -> int:
        """Samples with a target that count and are answered "no target" without candidates."""
        return int(pc.sum(pc.and_(self.table["is_gated"], self.table["counts"])).as_py() or 0)

    @property
    def num_discarded(self) -> int:
        """Samples with a target that count and are answered "no target" with known candidates."""
        table = self.table.filter(self.table["counts"])
        is_discarded = pc.and_(table["says_none"], pc.greater(table["num_targets"], 0))
        return int(pc.sum(pc.and_(is_discarded, pc.greater(table["num_found"], 0))).as_py() or 0)

    @property
    def is_gated(self) -> bool:
        """Whether a wrong "no target" is a miss in all metrics, although most are otherwise before the gate."""
        return self.all_gated or self.num_gated > 0

    @property
    def scores(self) -> ScoreColumns:
        """The samples that count."""
        return ScoreColumns.from_table(self.table)

    @property
    def failures(self) -> tuple[tuple[str, str], ...]:
        """(sample id, error) of samples without an answer that are in no metric."""
        return self._with_error(counts=False)

    @property
    def parse_failures(self) -> tuple[tuple[str, str], ...]:
        """(sample id, error) of samples whose answer could not be parsed; they count as wrong."""
        return self._with_error(counts=True, is_parse_failure=True)

    @property
    def wrong(self) -> tuple[tuple[str, str], ...]:
        """(sample id, error) of samples without an answer that count as wrong."""
        return self._with_error(counts=True)

    def _with_error(self, *, counts: bool, is_parse_failure: bool = False) -> tuple[tuple[str, str], ...]:
        is_one = pc.and_(pc.is_valid(self.table["error"]), pc.equal(self.table["counts"], counts))
        rows = self.table.filter(pc.and_(is_one, pc.equal(self.table["is_parse_failure"], is_parse_failure)))
        return tuple(zip(rows["id"].to_pylist(), rows["error"].to_pylist(), strict=True))


@dataclass(frozen=True)
class Run:
    """One system on some splits."""

    weights: str
    """The name of its weights, or the path of its prediction file."""
    precision: str | None
    """Type of its weights; None for a prediction file."""
    scoring: Scoring
    splits: tuple[SplitScores, ...]
    problems: Mapping[str, Mapping[str, RejectedLines]] = field(default_factory=dict)
    """Rejected lines by prediction file and kind."""
    warnings: tuple[str, ...] = ()
    """Warnings about the answers as a whole."""
    notation: str = ""
    """How the answers of another system were read; empty for models and prediction lines."""


def gated_run(run: Run) -> Run:
    """The same run with all metrics after the gate: a wrong "no target" discards boxes and masks."""
    splits = tuple(replace(split, table=gated_table(split.table), all_gated=True) for split in run.splits)
    return replace(run, splits=splits, scoring=replace(run.scoring, gated=True))


def write_run(run: Run, path: Path) -> None:
    """Write all samples of a run atomically, with the facts about the run in the metadata of the file."""
    tables = [split.table.add_column(0, "split", pa.array([split.name] * len(split.table))) for split in run.splits]
    facts = {
        "schema": PER_SAMPLE_SCHEMA,
        "weights": run.weights,
        "precision": run.precision,
        "scoring": {name: value for name, value in asdict(run.scoring).items() if name != "gated" or value},
        "splits": {s.name: {"size": s.size, "total": s.total, "seconds": s.seconds} for s in run.splits},
        "problems": {file: {kind: asdict(one) for kind, one in kinds.items()} for file, kinds in run.problems.items()},
        **({"warnings": run.warnings} if run.warnings else {}),
        **({"notation": run.notation} if run.notation else {}),
    }
    table = pa.concat_tables(tables).replace_schema_metadata({_FACTS: json.dumps(facts).encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_atomically(path, sink.getvalue().to_pybytes())


class _SplitFacts(msgspec.Struct):
    size: _Count
    total: _Count
    seconds: Annotated[float, msgspec.Meta(ge=0)]


class _ScoringFacts(msgspec.Struct):
    conventions: list[str]
    score_threshold: float
    missing: Missing
    gated: bool = False


class _ProblemFacts(msgspec.Struct):
    count: _Count
    first: list[str]


class _Facts(msgspec.Struct):
    schema: str
    weights: str
    precision: str | None
    scoring: _ScoringFacts
    splits: dict[str, _SplitFacts]
    problems: dict[str, dict[str, _ProblemFacts]]
    warnings: list[str] = []
    notation: str = ""


def read_run(path: Path) -> Run:
    """Read the run in a per-sample file, or in the folder that holds it.

    Raises:
        DataError: there is no such file, or refcli did not write it.
    """
    file = path / PER_SAMPLE if path.is_dir() else path
    if not file.is_file():
        raise _no_run(file, "it is not a regular file" if file.exists() else "there is no such file")
    try:
        with pq.ParquetFile(file) as parquet:
            facts = _facts_in(parquet, where=str(file))
            return _run_of(_table_in(parquet, file.stat().st_size), facts)
    except (OSError, KeyError, TypeError, ValueError, OverflowError, MemoryError, pa.ArrowException) as error:
        raise _no_run(file, str(error) or type(error).__name__) from error
    except DataError as error:
        raise _no_run(file, error.message) from error


def _no_run(file: Path, reason: str) -> DataError:
    return DataError(
        f"this is not a per-sample file of refcli evaluate: {reason}",
        where=str(file),
        hint=f"give the --out folder of an evaluation, or its {PER_SAMPLE}",
    )


def _facts_in(parquet: pq.ParquetFile, *, where: str) -> _Facts:
    metadata = parquet.metadata.metadata or {}
    if _FACTS not in metadata:
        raise ValueError("it holds no facts about a run")
    facts = parse_json(metadata[_FACTS], _Facts, where=where)
    if facts.schema != PER_SAMPLE_SCHEMA:
        raise ValueError(f"its schema is {facts.schema!r}")
    conventions = facts.scoring.conventions
    if ORIGINAL not in conventions or not set(conventions) <= CONVENTIONS.keys():
        raise ValueError(f"its conventions are {', '.join(conventions) or 'none'}")
    if not facts.splits:
        raise ValueError("it has no split")
    for name, kinds in facts.problems.items():
        for problem in kinds.values():
            if not all(re.match(rf"{re.escape(name)}:[0-9]{{1,18}}: ", line) for line in problem.first):
                raise ValueError(f"its problems of {name} name no lines")
    return facts


def _table_in(parquet: pq.ParquetFile, num_bytes: int) -> pa.Table:
    """The known columns of a file, if it can hold as many samples as it states."""
    metadata = parquet.metadata
    unpacked = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    if metadata.num_rows > num_bytes or unpacked > MOST_UNPACKED * num_bytes:
        raise ValueError(f"{num_bytes} bytes cannot hold {metadata.num_rows} samples")
    counts = [name for frame in FRAMES for name in overlap_columns(frame)]
    known = {"split", ROW, *TYPES, *counts}
    return parquet.read(columns=[name for name in parquet.schema_arrow.names if name in known], use_threads=False)


def _run_of(table: pa.Table, facts: _Facts) -> Run:
    scoring = Scoring(
        conventions=tuple(dict.fromkeys(facts.scoring.conventions)),
        score_threshold=facts.scoring.score_threshold,
        missing=facts.scoring.missing,
        gated=facts.scoring.gated,
    )
    if "split" not in table.column_names:
        raise ValueError("there is no column 'split'")
    names = table["split"].cast(pa.string())
    if not set(pc.unique(names).to_pylist()) <= facts.splits.keys():
        raise ValueError("samples are of a split that its facts do not list")
    table = _with_added(check_table(table.replace_schema_metadata(None), scoring.frames), facts.precision)
    parts = {name: table.filter(pc.equal(names, name)) for name in facts.splits}
    for name, part in parts.items():
        if len(part) > facts.splits[name].size:
            raise ValueError(f"it has {len(part)} of {facts.splits[name].size} samples of {name}")
    return Run(
        weights=facts.weights,
        precision=facts.precision,
        scoring=scoring,
        splits=tuple(
            SplitScores(name, parts[name], about.size, about.total, about.seconds, scoring.gated)
            for name, about in facts.splits.items()
        ),
        problems={
            file: {kind: RejectedLines(one.count, tuple(one.first)) for kind, one in kinds.items()}
            for file, kinds in facts.problems.items()
        },
        warnings=tuple(facts.warnings),
        notation=facts.notation,
    )


def _with_added(table: pa.Table, precision: str | None) -> pa.Table:
    """The table with the columns that files of earlier versions do not have.

    In those, the answers of models were scored with all their candidates; lines of prediction files that are "no
    target" were scored without.
    """
    says_none, is_answered = table["says_none"], pc.is_null(table["error"])
    if "states_none" not in table.column_names:
        stated = pc.and_(is_answered, pc.or_(says_none, table["knows_existence"]))
        table = table.append_column("states_none", pc.if_else(stated, says_none, pa.scalar(None, pa.bool_())))
    if "is_parse_failure" not in table.column_names:
        table = table.append_column("is_parse_failure", pa.array([False] * len(table)))
    if "num_framed" not in table.column_names:
        table = table.append_column("num_framed", pa.array([0] * len(table), pa.int32()))
    if "is_gated" not in table.column_names:
        is_empty = pc.and_(pc.equal(table["num_found"], 0), pc.greater(table["num_targets"], 0))
        is_gated = pc.and_(pc.and_(is_answered, says_none), pc.and_(is_empty, precision is None))
        table = table.append_column("is_gated", is_gated)
    for name in UNKNOWN_EARLIER:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table), TYPES[name]))
    return table


def merge_runs(parts: Mapping[str, Run]) -> Run:
    """Merge the parts of one run; all metrics equal those of the run in one piece.

    Args:
        parts: name in error messages -> part.

    Raises:
        DataError: the parts are of different systems or settings, or a sample is in several or none of them.
    """
    (first_name, first), *others = parts.items()
    for name, other in others:
        if _identity(other) != _identity(first):
            raise DataError(
                f"the parts are not of one run: {_describe(first)}, and {_describe(other)}",
                where=f"{first_name} and {name}",
                hint="evaluate every part with the same weights (or file and its format), conventions and settings",
            )
    names = dict.fromkeys(split.name for run in parts.values() for split in run.splits)
    problems: dict[str, dict[str, RejectedLines]] = {}
    for run in parts.values():
        for file, kinds in run.problems.items():
            _add_problems(problems.setdefault(file, {}), kinds, file)
    splits = tuple(_merge_split(name, parts) for name in names)
    warnings = tuple(dict.fromkeys(warning for run in parts.values() for warning in run.warnings))
    return replace(first, splits=splits, problems=problems, warnings=warnings)


def _add_problems(together: dict[str, RejectedLines], part: Mapping[str, RejectedLines], file: str) -> None:
    """Add the rejected lines of one more part."""

    def line_number(quoted: str) -> int:
        return int(quoted.removeprefix(f"{file}:").partition(":")[0])

    for kind, lines in part.items():
        before = together.get(kind)
        if before is None:
            together[kind] = lines
        elif kind == WRONG_SIZE:
            first = sorted(before.first + lines.first, key=line_number)[:MOST_LISTED]
            together[kind] = RejectedLines(before.count + lines.count, tuple(first))


def _identity(run: Run) -> tuple[object, ...]:
    return run.weights, run.notation, run.precision, run.scoring


def _describe(run: Run) -> str:
    conventions = ", ".join(run.scoring.conventions)
    return f"{run.weights} ({run.notation or run.precision}, {conventions}, {run.scoring.score_threshold:g})"


def _merge_split(name: str, parts: Mapping[str, Run]) -> SplitScores:
    found = [(place, split) for place, run in parts.items() for split in run.splits if split.name == name]
    sizes = {(split.size, split.total) for _, split in found}
    if len(sizes) != 1:
        raise DataError(
            f"the parts of {name} are of evaluations of different sizes: {sorted(size for size, _ in sizes)} samples",
            where=" and ".join(place for place, _ in found),
            hint="evaluate every part on the same store with the same --limit",
        )
    table = pa.concat_tables([split.table for _, split in found]).sort_by(ROW)
    size, rows = found[0][1].size, table[ROW].to_numpy()
    if len(rows) != size or not np.array_equal(rows, np.arange(len(rows))):
        once = np.unique(rows)
        twice, once = rows[1:][rows[1:] == rows[:-1]], once[once < size]
        missing = np.flatnonzero(once != np.arange(len(once)))[:1]  # the first gap
        first = int(missing[0]) if len(missing) else len(once)
        raise DataError(
            f"{name} has {size} samples; {size - len(once)} are in no part, {len(np.unique(twice))} in more than one",
            where=f"the first missing one is {first}" if len(once) < size else f"rows {_format_rows(twice)}",
            hint="give every --shard I/N exactly once",
        )
    return replace(found[0][1], table=table, seconds=sum(split.seconds for _, split in found))


def _format_rows(rows: np.ndarray) -> str:
    """The first and the last of some row numbers; a text if all are beyond the split."""
    if not len(rows):
        return "beyond the last sample"
    return f"{rows[0]}..{rows[-1]}" if len(rows) > 1 else str(rows[0])
