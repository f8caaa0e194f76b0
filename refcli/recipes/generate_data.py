"""prepare-data for data sets that are made rather than read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from refcli.config.load import validate
from refcli.data.sources.synthetic.settings import SyntheticSettings
from refcli.data.sources.table import GENERATORS
from refcli.data.store.write import SplitSummary
from refcli.errors import UsageError
from refcli.tables import lookup


def generate_data(
    name: str,
    *,
    out: Path,
    size: int,
    seed: int,
    splits: Sequence[str] | None = None,
    workers: int = 1,
    overrides: Mapping[str, Any] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[SplitSummary, ...]:
    """Make splits of a data set in the store `out`; splits that are already there stay, or are replaced by name.

    Args:
        name: a row of the table of generators.
        out: the store; made where it does not exist.
        size: pictures of each named split, or of train.
        seed: other seeds give other pictures.
        splits: names of the splits to write; None for the generator's own.
        workers: processes that work.
        overrides: settings of the scenes, such as {"kind_weights": {...}}.
        progress: called with (split, pictures written, pictures in all).

    Raises:
        ConfigError: no such generator, or settings that it does not have.
        UsageError: `out` is a file, or a split is named twice.
        DataError: a split cannot be written.
    """
    write = lookup(GENERATORS, name, what="data set")
    if out.exists() and not out.is_dir():
        raise UsageError("the store must be a directory", where=f"--out {out}", hint="name another place")
    if splits and len(set(splits)) < len(splits):
        raise UsageError(f"a split is named twice: {', '.join(splits)}", where="--split")
    settings = validate(SyntheticSettings, {**(overrides or {}), "seed": seed}, where=f"settings of {name}")
    summaries: tuple[SplitSummary, ...] = write(
        out, size=size, splits=splits or None, workers=workers, settings=settings, progress=progress
    )
    return summaries
