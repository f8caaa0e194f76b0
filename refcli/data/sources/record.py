"""What a source hands over: raw records, in canonical coordinates but unchecked, and the shape of a source itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from refcli.config.schema import Settings
from refcli.contracts.example import RLE

MAX_LISTED = 50
"""Places that are listed for each kind of problem; the counts go on."""

CATEGORY = "category"
"""Kind of an expression that is the name of a category."""

LazyMask = Callable[[], RLE | None]
"""A picklable function that reads a mask where it is needed, such as a `functools.partial` of a reader."""
BoxXYXY = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class RawImage:
    """An image that a record is about, not yet looked for."""

    key: str
    """The photograph's identity over all data sets: "coco:581857", "flickr30k:1000092795", "saiapr:38100", or
    "<dataset>:<file name>" where it has no other."""
    names: tuple[str, ...]
    """File names to look for, best first: with or without folders, forward slashes."""
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True, slots=True)
class RawRegion:
    """One referred object as its file has it, moved to continuous, 0-based, half-open pixels but neither clipped nor
    checked."""

    box_xyxy: BoxXYXY | None
    """None: the box is that of the mask."""
    segmentation: bytes | RLE | LazyMask | None = None
    """JSON text of a COCO segmentation (polygons, a run-length dict or a list of them), still unread; or a mask."""
    source_id: str | None = None
    """The annotation's identity: "coco:1877288" for COCO's annotations."""
    has_lost_mask: bool = False
    """Whether its file has a mask that the reader could not read, and has listed."""


class RawExpression(NamedTuple):
    """A text as the file has it, with an id that is unique in the data set's split."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class RawRecord:
    """Expressions that refer to the same regions of one image."""

    split: str
    image: RawImage
    expressions: tuple[RawExpression, ...]
    regions: tuple[RawRegion, ...]
    """Empty: nothing in the image is meant."""
    where: str
    """File and record, for messages: "refs(unc).p: ref 17"."""
    kind: str | None = None


@dataclass
class Problems:
    """What was found wrong: every kind counted, the first places listed."""

    counts: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, where: str, detail: str = "") -> None:
        """Count one problem; `kind` is a snake_case name such as "empty_expression"."""
        self.counts[kind] += 1
        listed = self.places.setdefault(kind, [])
        if len(listed) < MAX_LISTED:
            place = f"{where}: {detail}" if detail else where
            listed.append(place.encode("utf-8", "backslashreplace").decode())

    def merge(self, other: Problems) -> None:
        """Add what another part of the work has found."""
        self.counts.update(other.counts)
        for kind, places in other.places.items():
            listed = self.places.setdefault(kind, [])
            listed.extend(places[: MAX_LISTED - len(listed)])


class Reader(Protocol):
    """Reads the files of one data set."""

    def __call__(
        self, files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
    ) -> Iterator[RawRecord]:
        """Yield the records of all splits in the files' order.

        Args:
            files: role -> file, see `Source.files`.
            settings: the source's own settings.
            dataset: name of the data set, for image keys that have no other family.
            problems: collects every record that is left out.

        Raises:
            DataError: a file is unsafe, not of this format, or contradicts itself.
        """


@dataclass(frozen=True)
class Source:
    """One upstream format."""

    description: str
    read: Reader
    settings: type[Settings]
    files: Mapping[str, tuple[str, ...]]
    """Role -> file names looked for beside the main file, which is the first role. A source that keeps a file per
    split has the single role "*": its roles are the names of the splits."""
    sniff: Callable[[Path], bool]
    """Whether a file is of this format, from its first bytes or records; never raises on foreign files."""
    optional: frozenset[str] = frozenset()
    """Roles that may be absent."""

    @property
    def has_file_per_split(self) -> bool:
        """Whether the roles are splits."""
        return "*" in self.files
