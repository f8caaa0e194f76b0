"""The `weights` commands: list, describe, convert and verify weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refcli.config.schema import TextSettings
from refcli.errors import WeightsError
from refcli.files import file_sha256
from refcli.weights.catalog import TOKENIZER, Catalog, CatalogEntry, WeightsOrigin
from refcli.weights.layout import META_FILE, MODEL_FILE, is_file
from refcli.weights.locate import BUILTIN, BUILTIN_PATH, has_home, pulled_directory, resolve
from refcli.weights.pull import Pin, read_origin, read_pins

if TYPE_CHECKING:
    from refcli.weights.checks import WeightsInfo
    from refcli.weights.official.convert import ConversionReport, Dtype

UNVERIFIED = "unverified"


@dataclass(frozen=True)
class ListedWeights:
    """An entry of the catalogue, and its files on this machine."""

    entry: CatalogEntry
    origin: WeightsOrigin
    directory: Path | None
    """Its weights directory; None if it was not pulled."""
    pin: Pin | None

    @property
    def checksum(self) -> str:
        """`packaged`, `pinned` (by this user), `known` (to the catalogue) or `unverified`."""
        if self.entry.file is None:
            return "packaged"
        if self.pin is not None:
            return "pinned"
        return "known" if self.entry.sha256 is not None else UNVERIFIED

    def to_json(self) -> dict[str, Any]:
        """All fields as plain data; null means "not verified"."""
        tables, scores = Catalog.load().tables, self.entry.scores
        return {
            **self.entry.model_dump(mode="json"),
            "scores": {table: {**tables[table].model_dump(), "percent": sets} for table, sets in scores.items()},
            "repos": list(self.origin.repos),
            "licence": self.origin.licence,
            "citation": self.origin.citation,
            "homepage": self.origin.homepage,
            "checksum": self.checksum,
            "pin": self.pin.model_dump() if self.pin else None,
            "directory": str(self.directory) if self.directory else None,
        }


@dataclass(frozen=True)
class WeightsDescription:
    """A description of weights: from the catalogue, from their files, or from both."""

    listed: ListedWeights | None
    info: WeightsInfo | None


def list_weights() -> tuple[ListedWeights, ...]:
    """Every set of weights in the catalogue, in its order.

    Raises:
        WeightsError: the lock file is damaged.
    """
    catalog, pins = Catalog.load(), read_pins()
    return tuple(
        ListedWeights(entry, catalog.origin(entry), _directory(entry), pins.get(entry.name))
        for entry in catalog.weights
    )


def convert_weights(
    file: Path,
    *,
    out: Path,
    kind: str = "auto",
    dtype: Dtype = "fp32",
    image_size: int | None = None,
    heads: int | None = None,
    tokenizer: Path | None = None,
) -> ConversionReport:
    """Convert an official checkpoint; the pulled tokenizer is added to a model that it fits.

    Raises:
        RefcliError: see `refcli.weights.official.convert.convert`.
    """
    from refcli.weights.official.convert import convert
    from refcli.weights.tokenizers import pulled_tokenizer

    def converted(tokenizer: Path | None) -> ConversionReport:
        return convert(file, out=out, kind=kind, dtype=dtype, image_size=image_size, heads=heads, tokenizer=tokenizer)

    pulled = pulled_tokenizer()
    if tokenizer is not None or pulled is None:
        return converted(tokenizer)
    try:
        return converted(pulled)
    except WeightsError as problem:  # the tokenizer is checked before anything is written
        if problem.where != str(pulled):
            raise
        report = converted(None)
        return replace(report, notes=(*report.notes, f"the pulled tokenizer is not used: {problem.message}"))


def describe_weights(name_or_path: str) -> WeightsDescription:
    """The catalogue entry of weights, and a description of their files if this machine has them.

    A directory of that name takes precedence over the catalogue, as in every other command.

    Raises:
        UsageError: neither exists.
        WeightsError: the files cannot be read.
    """
    from refcli.weights.checks import read_info

    if name_or_path != BUILTIN and is_file(Path(name_or_path) / MODEL_FILE):
        return WeightsDescription(None, read_info(Path(name_or_path)))
    listed = next((each for each in list_weights() if each.entry.name == name_or_path), None)
    if listed is not None and (listed.directory is None or listed.entry.kind == "tokenizer"):
        return WeightsDescription(listed, None)
    return WeightsDescription(listed, read_info(resolve(name_or_path)))


def verify_weights(name_or_path: str) -> tuple[Path, list[str]]:
    """Check the files of weights or of the pulled tokenizer.

    Returns:
        Their directory, and a description of each problem.

    Raises:
        WeightsError: they were not pulled.
        UsageError: there are no such weights.
    """
    from refcli.text.tokenizer import OFFICIAL_NAME
    from refcli.weights.checks import verify

    directory = pulled_directory(TOKENIZER) if name_or_path == TOKENIZER else Path(name_or_path)
    if is_file(directory / OFFICIAL_NAME) and not is_file(directory / MODEL_FILE):
        return directory, _tokenizer_problems(directory / OFFICIAL_NAME)
    directory = resolve(name_or_path)
    return directory, verify(directory)


def _tokenizer_problems(file: Path) -> list[str]:
    from refcli.text.tokenizer import Tokenizer

    origin = read_origin(file.parent)
    problems = []
    if origin is None:
        problems.append(f"{META_FILE} does not state the origin of {file.name}")
    elif file_sha256(file) != origin["sha256"]:
        problems.append(f"{file.name} is not the file that was pulled: its sha256 differs from {META_FILE}'s")
    try:
        Tokenizer.load(TextSettings(tokenizer=str(file)))
    except WeightsError as problem:
        problems.append(problem.message)
    return problems


def require_intact(directory: Path, problems: list[str]) -> None:
    """Check that there are no problems.

    Raises:
        WeightsError: there are.
    """
    if problems:
        number = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise WeightsError(
            f"these weights are not intact: {number}",
            where=str(directory),
            hint="pull or convert them again, unless a line above gives other advice",
        )


def _directory(entry: CatalogEntry) -> Path | None:
    if entry.name == BUILTIN:
        return BUILTIN_PATH
    directory = pulled_directory(entry.name) if has_home() else None
    return directory if directory is not None and read_origin(directory) is not None else None
