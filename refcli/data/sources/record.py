"""The contract of every source: raw records in canonical coordinates, still unchecked, and the source itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from refcli.config.schema import Settings
from refcli.contracts.example import RLE
from refcli.geometry.boxes import BoxXYXY
from refcli.text.vlm_text import PIXELS

MAX_LISTED = 50
"""Places listed for each kind of problem; every occurrence is counted."""

CATEGORY = "category"
"""The kind of an expression that is a category name."""

LazyMask = Callable[[], RLE | None]
"""A picklable function that reads a mask when it is needed, such as a `functools.partial` of a reader."""

LazyBytes = Callable[[], bytes]
"""A picklable function that reads the bytes of an image file when they are needed; raises DataError."""


@dataclass(frozen=True, slots=True)
class RawImage:
    """The image of a record, before its file has been found."""

    key: str
    """The image's identity across data sets: "coco:581857", "flickr30k:1000092795", "saiapr:38100", or
    "<dataset>:<file name>" for any other image."""
    names: tuple[str, ...]
    """File names to search for, best first: with or without folders, with forward slashes."""
    width: int | None = None
    height: int | None = None
    content: LazyBytes | None = field(default=None, compare=False)
    """The image itself, if the annotation file contains it; it is then written into the store."""


@dataclass(frozen=True, slots=True)
class RawRegion:
    """One referred region as annotated, in continuous, 0-based, half-open pixels (see also `RawRecord.coordinates`);
    neither clipped nor checked."""

    box_xyxy: BoxXYXY | None
    """None: use the extent of the mask."""
    segmentation: bytes | RLE | LazyMask | None = None
    """Undecoded JSON of a COCO segmentation (polygons, a run-length dict or a list of those), or a mask."""
    source_id: str | None = None
    """The annotation's identity: "coco:1877288" for a COCO annotation."""
    has_lost_mask: bool = False
    """Whether the file has a mask that the reader could not read (and has reported)."""
    category: str | None = None
    """The class of a labelled object; see `RawRecord.needs_expressions`."""
    is_crowd: bool = False
    """Whether the region is a group of objects of its category that are not labelled one by one, or so hard to
    recognise that others like it may be unlabelled."""


class RawExpression(NamedTuple):
    """A text as annotated, with an id that is unique within the split."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class RawRecord:
    """Expressions that refer to the same regions of one image."""

    split: str
    image: RawImage
    expressions: tuple[RawExpression, ...]
    regions: tuple[RawRegion, ...]
    """Empty: the expressions have no target in the image."""
    where: str
    """File and record, for messages: "refs(unc).p: ref 17"."""
    kind: str | None = None
    ignored: bytes | RLE | LazyMask | None = None
    """Pixels that no mask metric counts, in the forms of `RawRegion.segmentation`."""
    coordinates: str = PIXELS
    """The space of the boxes: a name of `refcli.text.vlm_text.COORDINATES`, of which all but pixels depend on the size
    of the image."""
    needs_expressions: bool = False
    """Whether this is an image with all its labelled objects as `regions`, without `expressions`: they are written from
    categories and boxes when the record is finished."""


@dataclass
class Problems:
    """The problems found in a data set: every one counted by kind, the first places of each kind listed."""

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
        """Add the problems that another part of the work found."""
        self.counts.update(other.counts)
        for kind, places in other.places.items():
            listed = self.places.setdefault(kind, [])
            listed.extend(places[: MAX_LISTED - len(listed)])


class Reader(Protocol):
    """A function that reads the files of one data set."""

    def __call__(
        self, files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
    ) -> Iterator[RawRecord]:
        """Yield the records of all splits in file order.

        Args:
            files: role -> file, see `Source.files`.
            settings: the source's own settings.
            dataset: name of the data set; prefix of the keys of images that belong to no known collection.
            problems: collects every omitted record.

        Raises:
            DataError: a file is unsafe, is not of this format, or contradicts itself.
        """


@dataclass(frozen=True)
class Source:
    """One upstream format."""

    description: str
    read: Reader
    settings: type[Settings]
    files: Mapping[str, tuple[str, ...]]
    """Role -> file names searched for beside the main file, which has the first role; `{stem}` in a name
    stands for the main file's name up to its first dot. A source with one file per split has the role "*": the split
    names are roles."""
    sniff: Callable[[Path], bool]
    """Whether a file is of this format, judged by its first bytes or records; never raises on foreign files."""
    optional: frozenset[str] = frozenset()
    """Roles that may be absent."""
    reads_folder: bool = False
    """Whether the main file names other files below its folder, so that they are inputs as well."""
    read_names: Reader | None = None
    """For files that may hold images: as `read`, without the records whose images are inside, and without reading
    images; for passes that only need the names of files."""

    @property
    def has_file_per_split(self) -> bool:
        """Whether the roles are splits."""
        return "*" in self.files
