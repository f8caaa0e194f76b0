"""Specifications of data sets: the files in `data_specs/datasets`."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field, model_validator

from refcli.config.load import read_yaml, validate
from refcli.config.presets import data_specs_root
from refcli.config.schema import Settings
from refcli.data.sources.record import Source
from refcli.data.sources.table import SOURCES
from refcli.errors import ConfigError, DataError
from refcli.tables import did_you_mean, lookup


class SplitCounts(Settings):
    """The size of a split as published, before anything is left out; None if unknown."""

    images: int | None = Field(None, ge=1)
    """Distinct images with an expression."""
    refs: int | None = Field(None, ge=1)
    """Records: regions, or groups of regions, that expressions refer to."""
    expressions: int | None = Field(None, ge=1)
    basis: Literal["verified", "published", "remembered"]
    """`verified`: counted, or equal in several independent sources; `published`: stated by the authors;
    `remembered`: only a hint; a difference is not a failure."""


class CountsIf(Settings):
    """The counts of a data set when it is read with other settings."""

    settings: dict[str, Any] = Field(min_length=1)
    """All settings that differ from the data set's own and change the counts."""
    splits: dict[str, SplitCounts] = Field(default_factory=dict)
    """Empty: the counts with these settings are unknown."""


class Obtain(Settings):
    """A file that the user obtains from its authors; refcli does not download it."""

    what: str
    url: str | None = None
    note: str | None = None

    def __str__(self) -> str:
        return self.what + (f": {self.url}" if self.url else "") + (f" ({self.note})" if self.note else "")


class ImageCollection(Settings):
    """The image collection that a data set annotates."""

    what: str
    note: str | None = None


class DatasetSpec(Settings):
    """A data set: files that a source reads, a mixture of prepared splits, or generated scenes."""

    description: str
    """One line."""
    licence: str
    origin: str
    """Authors and history."""
    citation: str | None = None
    """The reference, in one line."""
    homepage: str | None = None
    obtain: tuple[Obtain, ...] = ()
    images: ImageCollection | None = None
    verified: bool = True
    """Whether the specification was checked against real files of the data set; if not, `prepare-data` says so."""

    source: str | None = None
    """Row of the table of sources (or generators); None for a mixture."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of the source."""
    folders: tuple[str, ...] = ()
    """Usual names of the data set's folder inside the folder of raw data."""
    files: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Role -> names of its file (or folder), best first; tried in each of `folders`, then in the raw folder itself."""

    splits: dict[str, SplitCounts] = Field(default_factory=dict)
    """Counts with the settings above."""
    counts_if: tuple[CountsIf, ...] = ()
    """Counts with other settings. A setting that no entry names does not change them."""

    mixture: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Split -> its members, as "dataset:split"."""
    family: tuple[str, ...] = ()
    """Data sets whose evaluation images must stay out of the mixture's training splits."""

    @model_validator(mode="after")
    def _check_consistency(self) -> DatasetSpec:
        if (self.source is None) != bool(self.mixture):
            raise ValueError("a data set has either a source or a mixture")
        if self.counts_if and self.source is None:
            raise ValueError("counts_if needs a source, and a mixture has none")
        for name in (*self.folders, *(name for names in self.files.values() for name in names)):
            if not PurePosixPath(name).parts or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ValueError(f"{name!r} is not a path inside the folder of raw data")
        for split, members in self.mixture.items():
            for member in members:
                dataset, colon, part = member.partition(":")
                if not (dataset and colon and part):
                    raise ValueError(f"the member {member!r} of {split} is not dataset:split")
                if is_evaluation_split(split) and dataset not in self.family:
                    raise ValueError(f"{split} is evaluated on {dataset}, which is not in the family")
        return self


def is_train_like(split: str) -> bool:
    """Whether a split is for training: its name starts with "train" or "focus", in any case.

    Examples: "train", "train2014", "trainval", "train_pseudo", "focus". Scores are reported on all other splits.
    """
    return split.casefold().startswith(("train", "focus"))


def is_evaluation_split(split: str) -> bool:
    """Whether scores are reported on a split: it is not train-like."""
    return not is_train_like(split)


def list_specs() -> list[str]:
    """Names of all data sets that ship with refcli, sorted."""
    return sorted(path.stem for path in (data_specs_root() / "datasets").glob("*.yaml"))


def load_spec(name: str) -> DatasetSpec:
    """The specification of a data set that ships with refcli.

    Raises:
        ConfigError: there is no such data set (the hint names the nearest), or its file is invalid.
    """
    known = list_specs()
    if name not in known:
        raise ConfigError(
            f"there is no data set called {name!r}",
            where="data set",
            hint=did_you_mean(name, known),
        )
    return _read_spec(data_specs_root() / "datasets" / f"{name}.yaml")


@cache
def _read_spec(path: Path) -> DatasetSpec:
    """The specification in a file that ships with refcli; each is read once, since every search for files needs all."""
    return validate(DatasetSpec, read_yaml(path), where=str(path))


def find_files(spec: DatasetSpec, raw: Path, *, splits: Collection[str] | None = None) -> dict[str, Path]:
    """The files of a data set by role; optional ones only if they exist.

    A role named after a published split is required if the split is in `splits` (None: all).

    Every name is tried in the data set's own folders first and then in `raw` itself, plain and with ".gz"; the first
    that exists is used. `raw` itself is skipped if it has the name of another data set's folder, because several data
    sets use the same file names.

    Raises:
        DataError: a role has no file; the hint lists every place tried and where to obtain the files.
    """
    if not raw.is_dir():
        raise DataError("there is no such folder of raw data", where=str(raw), hint=_how_to_obtain(spec))
    folders: tuple[str, ...] = (*spec.folders, ".")
    foreign = raw.resolve().name in _folders_of_others(spec)
    if foreign:
        folders = spec.folders
    tried = {role: list(_candidates(folders, names)) for role, names in spec.files.items()}
    found: dict[str, Path] = {}
    for role, candidates in tried.items():
        path = next((path for name in candidates for path in _plain_or_gz(raw / name) if path.exists()), None)
        if path is not None:
            found[role] = path
    unwanted = set() if splits is None else set(spec.splits) - set(splits)
    optional = (_optional_roles(spec) - set(spec.splits)) | unwanted
    missing = {role: names for role, names in tried.items() if role not in found and role not in optional}
    if missing:
        lines = [f"{role}: tried {', '.join(names)} (each also with .gz)" for role, names in missing.items()]
        if foreign:
            lines.append("the folder itself was skipped because it has the name of another data set")
        raise DataError(
            f"{len(missing)} of {len(spec.files)} files are missing: {', '.join(missing)}; {spec.description}",
            where=str(raw),
            hint="\n".join([*lines, _how_to_obtain(spec)]),
        )
    return found


def _candidates(folders: tuple[str, ...], names: tuple[str, ...]) -> Iterator[str]:
    for folder in folders:
        for name in names:
            yield str(PurePosixPath(folder) / name)


def _plain_or_gz(path: Path) -> tuple[Path, Path]:
    return path, path.with_name(path.name + ".gz")


def _optional_roles(spec: DatasetSpec) -> frozenset[str]:
    if spec.source not in SOURCES:
        return frozenset()
    source: Source = lookup(SOURCES, spec.source, what="source")
    return source.optional


def _folders_of_others(spec: DatasetSpec) -> set[str]:
    return {folder for name in list_specs() for folder in load_spec(name).folders} - set(spec.folders)


def _how_to_obtain(spec: DatasetSpec) -> str:
    if not spec.obtain:
        return spec.homepage or spec.origin
    return "\n".join(f"obtain {one}" for one in spec.obtain)
