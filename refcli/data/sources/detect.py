"""Which format a file has, told from its beginning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from refcli.data.sources.record import Source
from refcli.data.sources.table import SOURCES
from refcli.errors import DataError, UsageError
from refcli.tables import lookup


def detect_format(path: Path, *, table: Mapping[str, str] = SOURCES) -> str:
    """The row of the table of sources whose format a file or folder has.

    Raises:
        DataError: there is nothing at `path`.
        UsageError: it looks like none of the formats, or like several.
    """
    if not path.exists():
        raise DataError("there is no such file", where=str(path), hint="check the path")
    sources: dict[str, Source] = {name: lookup(table, name, what="format") for name in table}
    matching = [name for name, source in sources.items() if source.sniff(path)]
    if len(matching) == 1:
        return matching[0]
    candidates = matching or list(sources)
    looks_like = "several formats" if matching else "none of the known formats"
    raise UsageError(
        f"the file looks like {looks_like}",
        where=str(path),
        hint="say which with --format:\n" + "\n".join(f"  {name}: {sources[name].description}" for name in candidates),
    )
