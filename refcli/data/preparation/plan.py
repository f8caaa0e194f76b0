"""Plans: the source, settings and files of a data set that is to be prepared."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from refcli.config.load import validate
from refcli.config.schema import Settings
from refcli.data.sources.detect import detect_format
from refcli.data.sources.record import Source
from refcli.data.sources.rows import some_line_has
from refcli.data.sources.split_names import split_in
from refcli.data.sources.synthetic import SyntheticSettings
from refcli.data.sources.table import GENERATORS, SOURCES
from refcli.data.spec import DatasetSpec, find_files, load_spec
from refcli.errors import DataError, UsageError
from refcli.tables import lookup

IMAGE_SETS = "sets"
"""The role of lists of the images of each split."""
DEFAULT_SIZE = 2000
"""Number of images in the training split of a generated data set."""

Origin = Literal["published", "mixture", "generated"]
"""The origin of a known data set: published files, splits of the store, or a generator."""


@dataclass(frozen=True)
class FilePlan:
    """A data set that is read from files."""

    dataset: str
    source_name: str
    source: Source
    settings: Settings
    files: Mapping[str, Path]
    spec: DatasetSpec | None = None
    notes: tuple[str, ...] = ()
    """Assumptions to report to the user."""
    hub: Mapping[str, str | None] | None = None
    """Repository, revision and commit, for files of the Hugging Face Hub."""

    @property
    def inputs(self) -> dict[str, Path]:
        """Role -> file or folder of everything that is read, except images that only `--images` names."""
        main = next(iter(self.files.values()))
        folder = {"folder": main.parent} if self.source.reads_folder and main.is_file() else {}
        return {**self.files, **folder}

    def to_json(self) -> dict[str, Any]:
        """Plain data for the report of a dry run."""
        files = {role: str(path) for role, path in self.files.items()}
        return {"dataset": self.dataset, "status": "dry-run", "source": self.source_name, "files": files}


@dataclass(frozen=True)
class MixturePlan:
    """A data set that combines splits of the store."""

    dataset: str
    spec: DatasetSpec
    """Its `mixture`, `family` and published counts are used."""
    keep_leaks: bool = False
    """Keep training rows whose image is in an evaluation split of the family, as the papers do."""
    allow_missing: bool = False
    """Accept that evaluation splits of the family are not in the store, so that their images are not removed."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for the report of a dry run."""
        return {"dataset": self.dataset, "status": "dry-run", "mixture": dict(self.spec.mixture)}


@dataclass(frozen=True)
class GeneratedPlan:
    """A data set that is generated."""

    dataset: str
    settings: SyntheticSettings
    size: int = DEFAULT_SIZE
    """Images of each named split, or of train."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for the report of a dry run."""
        return {"dataset": self.dataset, "status": "dry-run"}


Plan = FilePlan | MixturePlan | GeneratedPlan


def origin_of(name: str) -> Origin:
    """The origin of a known data set.

    Raises:
        ConfigError: no such data set.
    """
    spec = load_spec(name)
    if spec.mixture:
        return "mixture"
    return "generated" if spec.source in GENERATORS else "published"


def plan_named(
    name: str,
    *,
    raw: Path | None = None,
    splits: Collection[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    size: int = DEFAULT_SIZE,
    seed: int = 0,
    keep_leaks: bool = False,
    allow_missing: bool = False,
) -> Plan:
    """The plan for a known data set; see `refcli.data.spec.list_specs`.

    Args:
        name: the data set.
        raw: for published files, the folder that holds them.
        splits: only these; None for all.
        overrides: settings of the source that differ from the specification's.
        size: for generated data sets, the images of each named split, or of train.
        seed: for generated data sets; another seed gives other images.
        keep_leaks: for mixtures; see `MixturePlan`.
        allow_missing: for mixtures; see `MixturePlan`.

    Raises:
        ConfigError: no such data set, or settings that its source does not have.
        UsageError: published files are needed, and `raw` is None.
        DataError: files are missing; the hint lists the names that were tried and where to get them.
    """
    spec, origin = load_spec(name), origin_of(name)
    if origin == "mixture":
        return MixturePlan(name, spec, keep_leaks, allow_missing)
    if origin == "generated":
        where = f"settings of {name}"
        return GeneratedPlan(name, validate(SyntheticSettings, {**(overrides or {}), "seed": seed}, where=where), size)
    if raw is None:
        hint = f"refcli prepare-data {name} --raw DIR ..."
        raise UsageError(f"{name} is read from its published files", where="--raw", hint=hint)
    source: Source = lookup(SOURCES, spec.source or "", what="source")
    settings = validate(source.settings, {**spec.settings, **(overrides or {})}, where=f"settings of {name}")
    files = find_files(spec, raw, splits=splits)
    if source.has_file_per_split and splits:
        files = {role: path for role, path in files.items() if role in splits or role in source.optional}
    notes = () if spec.verified else (_unverified(name, spec),)
    return FilePlan(name, spec.source or "", source, settings, files, spec, notes)


def with_files(plan: FilePlan, beside: Mapping[str, Path]) -> FilePlan:
    """The plan for a known data set with optional files, by role, that are not in the folder of raw data.

    Raises:
        UsageError: the data set has no such role.
    """
    roles = sorted(plan.source.optional & plan.spec.files.keys()) if plan.spec else []
    _refuse_unknown_roles(beside, roles, f"the data set {plan.dataset}")
    return replace(plan, files={**plan.files, **beside})


def _unverified(name: str, spec: DatasetSpec) -> str:
    return (
        f"{name}: this reader follows the documentation of the data set and was never run on its files; compare some "
        f"examples with {spec.homepage or 'the source'} (refcli inspect-data draws them)"
    )


def plan_file(
    file: Path,
    *,
    name: str,
    form: str = "auto",
    split: str | None = None,
    beside: Mapping[str, Path] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> FilePlan:
    """The plan for a custom file.

    Args:
        file: the main file of the format.
        name: name of the data set.
        form: a row of the table of sources, or "auto".
        split: the split, for formats with one file per split; None takes the last word of the file name that is a
            split, else train, with a note unless the lines of the file name their own splits.
        beside: further files by role; by default they are searched beside `file`.
        overrides: settings of the source.

    Raises:
        UsageError: the format cannot be detected, or has no such role.
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
        found = split or split_in(file)
        main = found or "train"
        names_split = form == "jsonl" and some_line_has(file, b"split")
        if not (found or names_split):
            notes = (f"{file.name}: read as the split train; --split names another",)
    beside = beside or {}
    others = [role for role in source.files if role not in ("*", main)]
    _refuse_unknown_roles(beside, others, f"the format {form}")
    files = {main: file}
    for role in others:
        names = tuple(name.format(stem=file.name.partition(".")[0]) for name in source.files[role])
        named = beside.get(role) or _first_of(file.parent, names) or (_first_of(file, names) if file.is_dir() else None)
        if named is not None:
            files[role] = named
        elif role not in source.optional:
            raise DataError(
                f"the format {form} also needs its {role}",
                where=str(file.parent),
                hint=f"put {' or '.join(names)} beside it, or give --with {role}=FILE",
            )
    return FilePlan(name, form, source, settings, files, notes=() if IMAGE_SETS in files else notes)


def _refuse_unknown_roles(beside: Iterable[str], roles: Collection[str], owner: str) -> None:
    unknown = sorted(set(beside) - set(roles))
    if unknown:
        raise UsageError(
            f"{owner} has no file called {unknown[0]!r}",
            where=f"--with {unknown[0]}=...",
            hint="it has: " + (", ".join(roles) or "none beside the main one"),
        )


def _first_of(folder: Path, names: Iterable[str]) -> Path | None:
    paths = (folder / (name + suffix) for name in names for suffix in ("", ".gz"))
    return next((path for path in paths if path.exists()), None)
