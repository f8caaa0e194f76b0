"""What is to be read for one data set: its source, its settings and its files."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refcli.config.load import validate
from refcli.config.schema import Settings
from refcli.data.reading.streams import stem
from refcli.data.sources.detect import detect_format
from refcli.data.sources.record import Source
from refcli.data.sources.rows import some_line_has
from refcli.data.sources.table import SOURCES
from refcli.data.spec import DatasetSpec, find_files, load_spec
from refcli.errors import DataError, UsageError
from refcli.tables import lookup

_SPLITS_BY_WORD = {
    word.casefold(): word for word in ("train", "trainval", "val", "test", "testA", "testB", "testC", "minival")
} | dict.fromkeys(("valid", "validation", "dev"), "val")
"""Word in a file's name, without the year behind it -> split."""


@dataclass(frozen=True)
class Plan:
    """What would be read: a source, its settings and its files."""

    dataset: str
    source_name: str
    source: Source
    settings: Settings
    files: Mapping[str, Path]
    spec: DatasetSpec | None = None
    notes: tuple[str, ...] = ()
    """What was assumed, for the user to know."""


def plan_named(
    name: str, *, raw: Path, splits: Collection[str] | None = None, overrides: Mapping[str, Any] | None = None
) -> Plan:
    """The plan for a published data set whose files lie below `raw`.

    Args:
        name: see `refcli.data.spec.list_specs`.
        raw: the folder of its files as published.
        splits: only these; None for all.
        overrides: settings of its source that differ from the specification's.

    Raises:
        ConfigError: no such data set, or settings that its source does not have.
        DataError: files are missing; the hint says which names were tried and where to get them.
    """
    spec = load_spec(name)
    if spec.source is None or spec.source not in SOURCES:
        raise UsageError(f"{name} is not read from files", where=name)
    source: Source = lookup(SOURCES, spec.source, what="source")
    settings = validate(source.settings, {**spec.settings, **(overrides or {})}, where=f"settings of {name}")
    files = find_files(spec, raw, splits=splits)
    if source.has_file_per_split and splits:
        files = {role: path for role, path in files.items() if role in splits or role in source.optional}
    return Plan(name, spec.source, source, settings, files, spec)


def plan_file(
    file: Path,
    *,
    name: str,
    form: str = "auto",
    split: str | None = None,
    beside: Mapping[str, Path] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan for a user's own file.

    Args:
        file: the main file of the format.
        name: what the data set is to be called.
        form: a row of the table of sources, or "auto".
        split: the split of a format that keeps a file per split; None: the last word of the file's name that
            names one, or train, of which the plan has a note unless the file's lines name their own.
        beside: further files by role; those not given are looked for beside `file`.
        overrides: settings of the source.

    Raises:
        UsageError: the format cannot be told, or a role is given that the format does not have.
        DataError: a file is missing.
    """
    if not file.exists():
        raise DataError("there is no such file", where=str(file), hint="check --from")
    form = detect_format(file) if form == "auto" else form
    source: Source = lookup(SOURCES, form, what="format")
    settings = validate(source.settings, overrides or {}, where=f"settings of the format {form}")
    main = next(iter(source.files))
    notes: tuple[str, ...] = ()
    if source.has_file_per_split:
        found = split or _split_in(file)
        main = found or "train"
        says_split = form == "jsonl" and some_line_has(file, b"split")
        notes = () if found or says_split else (f"{file.name}: read as the split train; --split names another",)
    beside = beside or {}
    others = [role for role in source.files if role not in ("*", main)]
    unknown = sorted(set(beside) - set(others))
    if unknown:
        raise UsageError(
            f"the format {form} has no file called {unknown[0]!r}",
            where=f"--with {unknown[0]}=...",
            hint="it has: " + (", ".join(others) or "none beside the main one"),
        )
    files = {main: file}
    for role in others:
        named = beside.get(role) or _first_of(file.parent, source.files[role])
        if named is not None:
            files[role] = named
        elif role not in source.optional:
            raise DataError(
                f"the format {form} also needs its {role}",
                where=str(file.parent),
                hint=f"put {' or '.join(source.files[role])} beside it, or give --with {role}=FILE",
            )
    return Plan(name, form, source, settings, files, notes=notes)


def _split_in(file: Path) -> str | None:
    words = (word.casefold().rstrip("0123456789") for word in reversed(re.split("[._-]", stem(file))))
    return next((_SPLITS_BY_WORD[word] for word in words if word in _SPLITS_BY_WORD), None)


def _first_of(folder: Path, names: Iterable[str]) -> Path | None:
    paths = (folder / (name + suffix) for name in names for suffix in ("", ".gz"))
    return next((path for path in paths if path.exists()), None)
