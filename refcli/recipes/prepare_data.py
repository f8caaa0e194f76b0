"""prepare-data: write the examples of a source into a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from refcli.data.sources.table import SOURCES
from refcli.data.spec import load_spec
from refcli.data.store import SplitSummary
from refcli.errors import UsageError
from refcli.tables import lookup


@dataclass(frozen=True)
class SourceRow:
    """One source that can be prepared."""

    name: str
    description: str
    licence: str
    origin: str


def list_sources() -> list[SourceRow]:
    """Every source, by name."""
    rows = []
    for name in sorted(SOURCES):
        spec = load_spec(name)
        rows.append(SourceRow(name, spec.description, spec.licence, spec.origin))
    return rows


def prepare_data(
    name: str,
    *,
    out: Path,
    size: int,
    seed: int,
    splits: Sequence[str] | None = None,
    workers: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[SplitSummary, ...]:
    """Write splits of a source into the store `out`; splits that are already there stay, or are replaced by name.

    Args:
        name: the source, see `list_sources`.
        out: the store; made where it does not exist.
        size: pictures of each named split, or of train.
        seed: other seeds give other pictures.
        splits: names of the splits to write; None for the source's own.
        workers: processes that work.
        progress: called with (split, pictures written, pictures in all).

    Raises:
        ConfigError: no such source.
        UsageError: `out` is a file, or a split is named twice.
        DataError: a split cannot be written.
    """
    write = lookup(SOURCES, name, what="source")
    if out.exists() and not out.is_dir():
        raise UsageError("the store must be a directory", where=f"--out {out}", hint="name another place")
    if splits and len(set(splits)) < len(splits):
        raise UsageError(f"a split is named twice: {', '.join(splits)}", where="--split")
    summaries: tuple[SplitSummary, ...] = write(
        out, size=size, seed=seed, splits=splits or None, workers=workers, progress=progress
    )
    return summaries
