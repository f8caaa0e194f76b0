"""A scored run: its splits sample by sample, in one Parquet file that can be read, merged and compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from refcli.errors import DataError
from refcli.evaluation.conventions import CONVENTIONS, ORIGINAL, frames_of
from refcli.evaluation.sample_table import ROW, SampleTable, Scores
from refcli.evaluation.scores import SCORE_THRESHOLD
from refcli.files import write_atomically

PER_SAMPLE = "per_sample.parquet"
PER_SAMPLE_SCHEMA = "refcli.per_sample/1"
WRONG_SIZE = "wrong size"
"""The sort of line problems that only the part notes which scores the sample; all others every part finds."""
MOST_LISTED = 50
"""Lines of each sort of problem that are quoted; all are counted."""
_FACTS = b"refcli"
"""Key of the facts about the run in the file's metadata."""

Missing: TypeAlias = Literal["error", "wrong"]


@dataclass(frozen=True)
class Scoring:
    """How samples are scored; equal settings give numbers that can be merged."""

    conventions: tuple[str, ...] = (ORIGINAL,)
    """Rows of `CONVENTIONS`, `original` first."""
    score_threshold: float = SCORE_THRESHOLD
    """Boxes of GREC have at least this score."""
    missing: Missing = "error"
    """What a sample without a usable answer is: left out as an error, or wrong in every figure."""

    @property
    def frames(self) -> tuple[str, ...]:
        """Where masks are compared."""
        return frames_of(self.conventions)

    def table(self) -> SampleTable:
        """An empty table for samples scored like this."""
        return SampleTable(self.frames)


@dataclass(frozen=True)
class LineProblems:
    """Lines of a prediction file that answer nothing, of one sort."""

    count: int
    first: tuple[str, ...]
    """The first of them, as `file:line: what is wrong`."""


@dataclass(frozen=True)
class SplitScores:
    """All that was measured on one split, or on a part of it."""

    name: str
    """`dataset:split`."""
    table: pa.Table
    """One row per sample of the part, see `SampleTable`."""
    size: int
    """Samples that were to be scored, in all parts together."""
    total: int
    """Samples of the split."""
    seconds: float

    @property
    def scores(self) -> Scores:
        """The samples that count."""
        return Scores.from_table(self.table)

    @property
    def failures(self) -> tuple[tuple[str, str], ...]:
        """(sample id, error) of samples without an answer that are in no figure."""
        return self._with_error(counts=False)

    @property
    def wrong(self) -> tuple[tuple[str, str], ...]:
        """(sample id, error) of samples without an answer that count as wrong."""
        return self._with_error(counts=True)

    def _with_error(self, *, counts: bool) -> tuple[tuple[str, str], ...]:
        is_one = pc.and_(pc.is_valid(self.table["error"]), pc.equal(self.table["counts"], counts))
        rows = self.table.filter(is_one)
        return tuple(zip(rows["id"].to_pylist(), rows["error"].to_pylist(), strict=True))


@dataclass(frozen=True)
class Run:
    """One system on some splits."""

    weights: str
    """The name of its weights, or its prediction file."""
    precision: str | None
    """Type of its weights; None for a prediction file."""
    scoring: Scoring
    splits: tuple[SplitScores, ...]
    problems: Mapping[str, Mapping[str, LineProblems]] = field(default_factory=dict)
    """By prediction file and sort."""


def write_run(run: Run, path: Path) -> None:
    """Write every sample of a run, with the run's facts in the file's metadata, atomically."""
    tables = [split.table.add_column(0, "split", pa.array([split.name] * len(split.table))) for split in run.splits]
    facts = {
        "schema": PER_SAMPLE_SCHEMA,
        "weights": run.weights,
        "precision": run.precision,
        "scoring": asdict(run.scoring),
        "splits": {s.name: {"size": s.size, "total": s.total, "seconds": s.seconds} for s in run.splits},
        "problems": {file: {sort: asdict(one) for sort, one in sorts.items()} for file, sorts in run.problems.items()},
    }
    table = pa.concat_tables(tables).replace_schema_metadata({_FACTS: json.dumps(facts).encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_atomically(path, sink.getvalue().to_pybytes())


def read_run(path: Path) -> Run:
    """The run in a per-sample file, or in the folder that holds it.

    Raises:
        DataError: there is none, or it is not one that this version wrote.
    """
    file = path / PER_SAMPLE if path.is_dir() else path
    try:
        table = pq.read_table(file)
        facts = json.loads((table.schema.metadata or {})[_FACTS])
        if facts["schema"] != PER_SAMPLE_SCHEMA or not set(facts["scoring"]["conventions"]) <= CONVENTIONS.keys():
            raise ValueError(f"its schema is {facts['schema']!r}")
        return _run_of(table, facts)
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"this is no per-sample file of refcli evaluate: {error}",
            where=str(file),
            hint=f"give the --out folder of an evaluation, or its {PER_SAMPLE}",
        ) from error


def _run_of(table: pa.Table, facts: Mapping[str, Any]) -> Run:
    scoring = facts["scoring"] | {"conventions": tuple(facts["scoring"]["conventions"])}
    table = table.replace_schema_metadata(None)
    return Run(
        weights=facts["weights"],
        precision=facts["precision"],
        scoring=Scoring(**scoring),
        splits=tuple(
            SplitScores(name, table.filter(pc.equal(table["split"], name)).drop_columns(["split"]), **about)
            for name, about in facts["splits"].items()
        ),
        problems={
            file: {sort: LineProblems(one["count"], tuple(one["first"])) for sort, one in sorts.items()}
            for file, sorts in facts["problems"].items()
        },
    )


def merge_runs(parts: Mapping[str, Run]) -> Run:
    """The parts of one run together; every figure is that of the run in one piece.

    Args:
        parts: by the name that errors call them.

    Raises:
        DataError: they are of different systems or settings, a sample is in two of them, or one is in none.
    """
    (first_name, first), *others = parts.items()
    for name, other in others:
        if (other.weights, other.precision, other.scoring) != (first.weights, first.precision, first.scoring):
            raise DataError(
                f"the parts are not of one run: {_about(first)}, and {_about(other)}",
                where=f"{first_name} and {name}",
                hint="evaluate every part with the same weights (or file), conventions and settings",
            )
    names = dict.fromkeys(split.name for run in parts.values() for split in run.splits)
    problems: dict[str, dict[str, LineProblems]] = {}
    for run in parts.values():
        for file, sorts in run.problems.items():
            _add_problems(problems.setdefault(file, {}), sorts, file)
    splits = tuple(_merge_split(name, parts) for name in names)
    return replace(first, splits=splits, problems=problems)


def _add_problems(together: dict[str, LineProblems], part: Mapping[str, LineProblems], file: str) -> None:
    """Add those of one more part to those of others."""

    def line_number(quoted: str) -> int:
        return int(quoted.removeprefix(f"{file}:").partition(":")[0])

    for sort, lines in part.items():
        before = together.get(sort)
        if before is None:
            together[sort] = lines
        elif sort == WRONG_SIZE:
            first = sorted(before.first + lines.first, key=line_number)[:MOST_LISTED]
            together[sort] = LineProblems(before.count + lines.count, tuple(first))


def _about(run: Run) -> str:
    return f"{run.weights} ({run.precision}, {', '.join(run.scoring.conventions)}, {run.scoring.score_threshold:g})"


def _merge_split(name: str, parts: Mapping[str, Run]) -> SplitScores:
    found = [(place, split) for place, run in parts.items() for split in run.splits if split.name == name]
    sizes = {(split.size, split.total) for _, split in found}
    if len(sizes) != 1:
        raise DataError(
            f"the parts of {name} are of different wholes: {sorted(size for size, _ in sizes)} samples",
            where=" and ".join(place for place, _ in found),
            hint="evaluate every part on the same store with the same --limit",
        )
    table = pa.concat_tables([split.table for _, split in found]).sort_by(ROW)
    rows = table[ROW].to_pylist()
    expected = range(found[0][1].size)
    if rows != list(expected):
        twice = sorted({one for one, other in pairwise(rows) if one == other})
        missing = sorted(set(expected) - set(rows))
        raise DataError(
            f"{name} has {len(expected)} samples; {len(missing)} are in no part, {len(twice)} in more than one",
            where=f"rows {_shown(missing or twice)}",
            hint="give every --shard I/N exactly once",
        )
    return replace(found[0][1], table=table, seconds=sum(split.seconds for _, split in found))


def _shown(rows: list[int]) -> str:
    return f"{rows[0]}..{rows[-1]}" if len(rows) > 1 else str(rows[0])
