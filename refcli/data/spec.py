"""What is known about a data set before it is prepared: its file in `data_specs/datasets`."""

from __future__ import annotations

from collections.abc import Collection, Iterator
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
    """How much a split holds as its files have it, before anything is left out; None where it is not known."""

    images: int | None = Field(None, ge=1)
    """Distinct pictures that have an expression."""
    refs: int | None = Field(None, ge=1)
    """Records: regions, or groups of regions, that expressions refer to."""
    expressions: int | None = Field(None, ge=1)
    basis: Literal["verified", "published", "remembered"]
    """`verified`: counted, or found alike in several independent places; `published`: its authors say so;
    `remembered`: only a hint, a difference is no failure."""


class CountsIf(Settings):
    """The counts of a data set that is read with other settings than its own."""

    settings: dict[str, Any] = Field(min_length=1)
    """Those that differ from the data set's and change what is counted; all of them together."""
    splits: dict[str, SplitCounts] = Field(default_factory=dict)
    """Empty: they change the counts, but nobody has published these."""


class Obtain(Settings):
    """One thing to get from its authors; nothing is ever downloaded from here."""

    what: str
    url: str | None = None
    note: str | None = None

    def __str__(self) -> str:
        return self.what + (f": {self.url}" if self.url else "") + (f" ({self.note})" if self.note else "")


class Pictures(Settings):
    """Which photographs a data set is about."""

    what: str
    note: str | None = None


class DatasetSpec(Settings):
    """One data set: either files that a source reads, a mixture of prepared splits, or generated scenes."""

    description: str
    """One line."""
    licence: str
    origin: str
    """Who made it, and where it comes from."""
    citation: str | None = None
    """The reference, in one line."""
    homepage: str | None = None
    obtain: tuple[Obtain, ...] = ()
    images: Pictures | None = None

    source: str | None = None
    """Row of the table of sources (or generators); None for a mixture."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """For the source's own settings class."""
    folders: tuple[str, ...] = ()
    """Names that the data set's folder goes by, inside the folder of raw data."""
    files: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Role -> names of its file (or folder), best first; tried in each of `folders`, then in the raw folder itself."""

    splits: dict[str, SplitCounts] = Field(default_factory=dict)
    """With the settings above."""
    counts_if: tuple[CountsIf, ...] = ()
    """Counts with other settings. A setting that no entry names changes no count."""

    mixture: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Split -> its members, as "dataset:split"."""
    family: tuple[str, ...] = ()
    """Data sets whose evaluation pictures must stay out of the mixture's training splits."""

    @model_validator(mode="after")
    def _is_whole(self) -> DatasetSpec:
        if (self.source is None) != bool(self.mixture):
            raise ValueError("a data set has either a source or a mixture")
        if self.counts_if and self.source is None:
            raise ValueError("counts_if is about the settings of a source, and a mixture has none")
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
    """Whether models are trained on a split, by its name: "train", "train2014", "trainval", "train_pseudo", "focus"...

    Every name that starts with "train" or "focus", in any case, is train-like; scores are reported on all others.
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
        ConfigError: there is no such data set (the hint names the nearest), or its file does not fit.
    """
    known = list_specs()
    if name not in known:
        raise ConfigError(
            f"there is no data set called {name!r}",
            where="data set",
            hint=did_you_mean(name, known),
        )
    path = data_specs_root() / "datasets" / f"{name}.yaml"
    return validate(DatasetSpec, read_yaml(path), where=str(path))


def find_files(spec: DatasetSpec, raw: Path, *, splits: Collection[str] | None = None) -> dict[str, Path]:
    """Where the files of a data set lie, by role; those that the source can do without only if they are there.

    A role that is named after one of the published splits is needed if the split is in `splits` (None: all).

    Every name is tried in the data set's own folders first and then in `raw` itself, plain and with ".gz"; the first
    that exists wins. `raw` itself is passed over if it bears the name of another data set's folder: the same file
    names occur in several of them.

    Raises:
        DataError: a role has no file; the hint lists every place tried and where the files can be had.
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
            lines.append("the folder itself was passed over, because it bears the name of another data set")
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
