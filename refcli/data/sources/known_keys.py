"""The keys of records: which a reader reads, which say nothing it needs, and which would change what a record means."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import msgspec

from refcli.data.sources.record import Problems
from refcli.errors import DataError

ATTRIBUTES = "attributes"
"""Where CVAT, FiftyOne and others keep keys of their own."""
UNUSED_KEY = "unused_key"
_TRUE = frozenset({"true", "yes", "1", "1.0"})
_FALSE = frozenset({"false", "no", "0", "0.0"})
_TURN = 180.0
_TURN_TOLERANCE = 0.01
"""Degrees, of a box that is as good as upright."""


class MeaningError(DataError):
    """A record has a key that changes what it means, and that its format's reader does not read."""

    def __init__(self, message: str, *, kind: str, where: str, hint: str | None = None) -> None:
        super().__init__(message, where=where, hint=hint)
        self.kind = kind
        """Under which kind of problem the record is listed."""


class WholeFileError(DataError):
    """What one record says is true of all of its file."""


@dataclass(frozen=True)
class KnownKeys:
    """The keys of one kind of record of a format."""

    record: str
    """annotation, image, sentence, ..."""
    read: frozenset[str]
    unused: frozenset[str] = frozenset()
    """Keys of published files that say nothing that is needed."""
    has_box: bool = False
    """Whether the record is a box, which may be rotated."""
    has_corners: bool = False
    """Whether boxes of the format are x1, y1, x2, y2; else they are COCO's: left, top, width, height."""

    @cached_property
    def all(self) -> frozenset[str]:
        """Every known key."""
        return self.read | self.unused


@dataclass
class KeyLog:
    """The unknown keys of one file: each is counted, with the first record that has it."""

    file: str
    problems: Problems
    _counts: dict[tuple[str, str], int] = field(default_factory=dict)
    _first: dict[tuple[str, str], str] = field(default_factory=dict)

    def check(self, known: KnownKeys, row: Mapping[str, object], where: str) -> None:
        """Count the unknown keys of a record, whose values may be undecoded JSON.

        Raises:
            MeaningError: one of them says that the record means something else than it seems to.
            WholeFileError: one of them says so of every record.
        """
        for key in row.keys() - known.all:
            self._note(known, key, where)
            check_meaning(_text(key), plain(row[key]), known, where)
        if ATTRIBUTES in row and isinstance(attributes := plain(row[ATTRIBUTES]), dict):
            for key, value in attributes.items():
                self._note(known, f"{ATTRIBUTES}.{_text(key)}", where)
                check_meaning(_text(key), value, known, where)

    def finish(self) -> None:
        """List every unknown key once, with how often it occurred."""
        for (record, key), count in self._counts.items():
            times = "once" if count == 1 else f"{count:,} times"
            self.problems.add(
                UNUSED_KEY, self.file, f"{record} key {excerpt(key)!r}, {times}, first in {self._first[record, key]}"
            )
        self._counts.clear()

    def _note(self, known: KnownKeys, key: object, where: str) -> None:
        name = (known.record, _text(key))
        self._counts[name] = self._counts.get(name, 0) + 1
        self._first.setdefault(name, where)


def check_meaning(key: str, value: object, known: KnownKeys, where: str) -> None:
    """Refuse a record that means something else than its reader takes it to mean.

    Raises:
        MeaningError: see `KeyLog.check`.
        WholeFileError: see `KeyLog.check`.
    """
    name = key.replace("_", "").replace("-", "").replace(" ", "").casefold()
    shown = f"{known.record} key {excerpt(key)!r} is {excerpt(value)}"
    if name in _SAYS_ABSENT and _SAYS_ABSENT[name](value):
        raise MeaningError(
            f"{shown}: the expression may have no target in the image",
            kind="unread_meaning",
            where=where,
            hint="mark such records the way this format marks no target, or leave them out",
        )
    if name in _SAYS_IGNORED and _SAYS_IGNORED[name](value):
        raise MeaningError(f"{shown}: the record is marked as not to be used", kind="ignored_record", where=where)
    if known.has_box and name in _ANGLES and _is_turned(value):
        raise MeaningError(
            f"{shown}: rotated boxes are not read",
            kind="rotated_box",
            where=where,
            hint="give the upright box around it, or a segmentation",
        )
    if _is_foreign_form(name, value, has_corners=known.has_corners):
        raise WholeFileError(
            f"{shown}: boxes in that form are not read",
            where=where,
            hint="convert the boxes to the form of this format, in pixels",
        )


def excerpt(value: object, letters: int = 40) -> str:
    """The beginning of a value, for messages."""
    text = bytes(value[: 4 * letters]).decode("utf-8", "replace") if isinstance(value, bytes) else _text(value)
    return text if len(text) <= letters else text[:letters] + "..."


def _text(value: object) -> str:
    """A value as JSON writes it; containers and whole numbers too long for it only by what they are."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list | tuple | dict):
        return _container_text(value)
    try:
        return value if isinstance(value, str) else str(value)
    except ValueError:  # Python refuses to write whole numbers of more than 4,300 digits
        return "a number with thousands of digits"


def _container_text(value: Sequence[object] | Mapping[object, object]) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError, UnicodeError):
        return f"a {type(value).__name__}"


def _is_true(value: object) -> bool:
    return value is True or _text(value).casefold() in _TRUE


def _is_false(value: object) -> bool:
    return value is False or _text(value).casefold() in _FALSE


_SAYS_ABSENT: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(
        ("exist", "exists", "isexist", "isexisting", "existent", "existence", "ispresent", "present", "hastarget",
         "targetexists", "hasreferent", "referentexists", "hasobject", "objectexists", "ispositive", "positive",
         "answerable", "isanswerable"),
        _is_false,
    ),
    **dict.fromkeys(
        ("notarget", "isnotarget", "hasnotarget", "negative", "isnegative", "neg", "isneg", "absent", "isabsent",
         "empty", "isempty", "unanswerable", "isunanswerable", "norefer", "noreferent", "noobject", "nonexistent",
         "isnonexistent", "notexist", "rejection", "isrejection", "distractor", "isdistractor"),
        _is_true,
    ),
}  # fmt: skip
"""Names, without case and punctuation, of keys that say whether an expression means anything -> when they deny it."""
_SAYS_IGNORED: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(
        ("ignore", "ignored", "isignored", "ignoreregion", "ignoreflag", "skip", "skipped", "deleted", "isdeleted",
         "removed", "discard", "discarded", "rejected", "wascancelled", "outside", "isinvalid", "invalid",
         "dontcare", "isdontcare", "excluded", "exclude", "dropped"),
        _is_true,
    ),
    **dict.fromkeys(("valid", "isvalid"), _is_false),
}  # fmt: skip
"""The same of keys that say whether a record is to be used."""
_ANGLES = frozenset(
    {"rotation", "rotate", "angle", "theta", "rotationangle", "rotateangle", "rotangle", "bboxrotation", "bboxangle",
     "boxangle", "rotationdeg", "rotationdegrees", "angledeg", "angledegrees", "anglerad", "rotated", "isrotated"}
)  # fmt: skip
_BOX_MODES = frozenset({"bboxmode", "boxmode"})
_CORNERS_MODE, _SIZES_MODE = "0", "1"
"""Detectron2's numbers of boxes that are x1, y1, x2, y2, and of COCO's."""
_BOX_FORMATS = frozenset({"bboxformat", "boxformat", "bboxtype", "boxtype", "boxesformat", "bboxesformat", *_BOX_MODES})
_CORNERS = ("xyxy", "ltrb", "tlbr", "voc", "corner")
_SIZES = ("xywh", "ltwh", "tlwh", "coco")
_FOREIGN_FORMS = ("yxyx", "cxcy", "xcyc", "yolo", "center", "centre", "norm", "rel", "percent")
"""What values of these keys hold that say that boxes are corners, that they are COCO's, or that they are neither."""
_FRACTIONS = frozenset({"normalized", "normalised", "isnormalized", "isnormalised", "relative", "isrelative"})


def _is_turned(value: object) -> bool:
    """Whether an angle, in degrees or radians, leaves a box other than upright."""
    if isinstance(value, bool):
        return value
    try:
        angle = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return _is_true(value)
    return not math.isfinite(angle) or abs(math.remainder(angle, _TURN)) > _TURN_TOLERANCE


def _is_foreign_form(name: str, value: object, *, has_corners: bool) -> bool:
    """Whether a key says that boxes are written otherwise than in pixels and as those of the format."""
    if name in _FRACTIONS:
        return _is_true(value)
    if name not in _BOX_FORMATS or not isinstance(value, int | str) or isinstance(value, bool):
        return False
    text = _text(value).replace("_", "").casefold()
    if name in _BOX_MODES and text.isdecimal():
        return text != (_CORNERS_MODE if has_corners else _SIZES_MODE)
    return any(form in text for form in (*_FOREIGN_FORMS, *(_SIZES if has_corners else _CORNERS)))


def plain(value: object) -> object:
    """The value of a key, decoded if it is still JSON text; None if that is no JSON."""
    if not isinstance(value, msgspec.Raw):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
