"""The catalogue of weights that refcli knows by name, from `data_specs/weights.yaml`."""

from __future__ import annotations

from functools import cache
from typing import Literal

from pydantic import Field, model_validator

from refcli.config.load import read_yaml, validate
from refcli.config.presets import data_specs_root
from refcli.config.schema import Settings
from refcli.errors import UsageError
from refcli.tables import did_you_mean

Kind = Literal["builtin", "oneref", "beit3", "vqkd", "tokenizer"]
"""The content of a file; all but the first and the last are rows of `CONVERSIONS`."""
Task = Literal["rec", "res", "pretraining", "visual-tokenizer", "text-tokenizer"]
KINDS_WITH_TEXT = frozenset({"oneref", "beit3"})
"""Models that read expressions and therefore need `TOKENIZER`."""
TOKENIZER = "beit3-tokenizer"
"""The entry whose file every model of `KINDS_WITH_TEXT` needs."""
HEX = "0123456789abcdef"


class PublishedTable(Settings):
    """The source of published scores."""

    metric: str
    """Named as in refcli's own reports; values are in percent."""
    source: str
    note: str | None = None


class WeightsOrigin(Settings):
    """The authors of weights, and their terms."""

    repos: tuple[str, ...] = ()
    """Repositories on the Hub that hold the files, in the order in which they are tried."""
    homepage: str | None = None
    licence: str
    citation: str | None = None


class CatalogEntry(Settings):
    """One set of weights. None means "not verified" for a revision, a checksum and a size."""

    name: str
    title: str
    """One line."""
    origin: str
    """Row of the catalogue's origins."""
    kind: Kind
    tasks: tuple[Task, ...]
    tower: Literal["base", "large"] | None = None
    head: str | None = None
    image_size: int | None = Field(None, ge=1)
    """Side of the square model frame in pixels."""
    starts_from: str | None = None
    """The entry whose weights training started from."""
    trained_on: tuple[str, ...] = ()
    """Datasets of the last stage, as `refcli prepare-data --list` names them."""
    file: str | None = None
    """Path inside the repository; None for weights that are part of refcli."""
    member: str | None = None
    """For a zip: the end of the member's path, in complete folder names."""
    stated_size: str | None = None
    """Size of the file, as its authors round it."""
    revision: str | None = None
    """The commit, 40 hex digits."""
    sha256: str | None = None
    """Of the file, not of the member."""
    num_bytes: int | None = Field(None, ge=1)
    """Of the file."""
    scores: dict[str, dict[str, dict[str, float]]] = Field(default_factory=dict)
    """Table -> data set -> split -> percent."""
    notes: str | None = None

    @model_validator(mode="after")
    def _is_complete(self) -> CatalogEntry:
        if (self.file is None) != (self.kind == "builtin"):
            raise ValueError("all weights have a file, except the packaged ones")
        for value, digits in ((self.revision, 40), (self.sha256, 64)):
            if value is not None and (len(value) != digits or set(value) - set(HEX)):
                raise ValueError(f"{value!r} is not {digits} hex digits")
        return self


class Catalog(Settings):
    """All entries, in the order in which they are listed."""

    tables: dict[str, PublishedTable]
    origins: dict[str, WeightsOrigin]
    weights: tuple[CatalogEntry, ...]

    @model_validator(mode="after")
    def _is_consistent(self) -> Catalog:
        names = self.names()
        if len(set(names)) < len(names):
            raise ValueError("a name is given twice")
        for entry in self.weights:
            if entry.origin not in self.origins:
                raise ValueError(f"{entry.name}: there is no origin {entry.origin!r}")
            if entry.file is not None and not self.origins[entry.origin].repos:
                raise ValueError(f"{entry.name}: its origin has no repository")
            if entry.starts_from is not None and entry.starts_from not in names:
                raise ValueError(f"{entry.name}: starts_from names {entry.starts_from!r}, which is not listed")
            for table in entry.scores:
                if table not in self.tables:
                    raise ValueError(f"{entry.name}: there is no table {table!r}")
        return self

    @staticmethod
    @cache
    def load() -> Catalog:
        """The catalogue that is part of refcli.

        Raises:
            ConfigError: the file is missing or invalid, so the installation is broken.
        """
        path = data_specs_root() / "weights.yaml"
        return validate(Catalog, read_yaml(path), where=str(path))

    def names(self) -> list[str]:
        """Every name, in order."""
        return [entry.name for entry in self.weights]

    def origin(self, entry: CatalogEntry) -> WeightsOrigin:
        """The origin of an entry's weights."""
        return self.origins[entry.origin]

    def find(self, name: str) -> CatalogEntry:
        """The entry of that name.

        Raises:
            UsageError: there is none; the hint names the nearest.
        """
        for entry in self.weights:
            if entry.name == name:
                return entry
        raise UsageError(
            f"there are no weights called {name!r}",
            where="the catalogue",
            hint=did_you_mean(name, self.names(), rest="see `refcli weights list`"),
        )
