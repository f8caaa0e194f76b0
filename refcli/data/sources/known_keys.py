"""The keys of records: those that a reader uses, may ignore, or must refuse because they change a record's meaning."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import msgspec

from refcli.data.sources.record import Problems
from refcli.errors import DataError

ATTRIBUTES = "attributes"
"""Containers of the custom keys of CVAT, FiftyOne and other tools."""
UNUSED_KEY = "unused_key"
_TRUE = frozenset({"true", "yes", "1", "1.0"})
_FALSE = frozenset({"false", "no", "0", "0.0"})
_HALF_TURN = 180.0
_ROTATION_TOLERANCE = 0.01
"""Degrees up to which a box counts as upright."""


class MeaningError(DataError):
    """A record has a key that changes its meaning and that the format's reader does not read."""

    def __init__(self, message: str, *, kind: str, where: str, hint: str | None = None) -> None:
        super().__init__(message, where=where, hint=hint)
        self.kind = kind
        """The kind of problem that the record is reported as."""


class WholeFileError(DataError):
    """One record shows that the whole file cannot be used."""


@dataclass(frozen=True)
class KnownKeys:
    """The keys of one kind of record of a format."""

    record: str
    """annotation, image, sentence, ..."""
    read: frozenset[str]
    unused: frozenset[str] = frozenset()
    """Keys of published files that the reader does not need."""
    has_box: bool = False
    """Whether the record is a box, which may be rotated."""
    has_corners: bool = False
    """Whether the format's boxes are x1, y1, x2, y2; otherwise they are COCO's left, top, width, height."""

    @cached_property
    def all(self) -> frozenset[str]:
        """Every known key."""
        return self.read | self.unused


@dataclass
class KeyLog:
    """The unknown keys of one file: each is counted, and its first record remembered."""

    file: str
    problems: Problems
    _counts: dict[tuple[str, str], int] = field(default_factory=dict)
    _first: dict[tuple[str, str], str] = field(default_factory=dict)

    def check(self, known: KnownKeys, row: Mapping[str, object], where: str) -> None:
        """Count the unknown keys of a record, whose values may be undecoded JSON.

        Raises:
            MeaningError: a key gives the record a meaning that the reader does not support.
            WholeFileError: a key does so for every record.
        """
        for key in row.keys() - known.all:
            self._note(known, key, where)
            check_meaning(_text(key), decoded(row[key]), known, where)
        if ATTRIBUTES in row and isinstance(attributes := decoded(row[ATTRIBUTES]), dict):
            for key, value in attributes.items():
                self._note(known, f"{ATTRIBUTES}.{_text(key)}", where)
                check_meaning(_text(key), value, known, where)

    def finish(self) -> None:
        """Report every unknown key once, with its number of occurrences."""
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
    """Refuse a record whose key gives it a meaning that the reader does not support.

    Raises:
        MeaningError: see `KeyLog.check`.
        WholeFileError: see `KeyLog.check`.
    """
    name = key.replace("_", "").replace("-", "").replace(" ", "").casefold()
    shown = f"{known.record} key {excerpt(key)!r} is {excerpt(value)}"
    if name in _MEANS_ABSENT and _MEANS_ABSENT[name](value):
        raise MeaningError(
            f"{shown}: the expression may have no target in the image",
            kind="unread_meaning",
            where=where,
            hint="mark such records the way this format marks no target, or leave them out",
        )
    if name in _MEANS_IGNORED and _MEANS_IGNORED[name](value):
        raise MeaningError(f"{shown}: the record is marked as unusable", kind="ignored_record", where=where)
    if known.has_box and name in _ANGLES and _is_rotated(value):
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
    """A value as JSON text; a container or whole number that cannot be written is described instead."""
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


def _is_given(value: object) -> bool:
    return value is not None and value != "" and not _is_false(value)


_MEANS_ABSENT: dict[str, Callable[[object], bool]] = {
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
    **dict.fromkeys(("negativetype", "negtype", "negativecate", "negativelevel"), _is_given),
}  # fmt: skip
"""Keys, without case and punctuation, that state whether an expression has a target -> the test for "no target"."""
_MEANS_IGNORED: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(
        ("ignore", "ignored", "isignored", "ignoreregion", "ignoreflag", "skip", "skipped", "deleted", "isdeleted",
         "removed", "discard", "discarded", "rejected", "wascancelled", "outside", "isinvalid", "invalid",
         "dontcare", "isdontcare", "excluded", "exclude", "dropped"),
        _is_true,
    ),
    **dict.fromkeys(("valid", "isvalid"), _is_false),
}  # fmt: skip
"""Keys that state whether a record may be used -> the test for "unusable"."""
_ANGLES = frozenset(
    {"rotation", "rotate", "angle", "theta", "rotationangle", "rotateangle", "rotangle", "bboxrotation", "bboxangle",
     "boxangle", "rotationdeg", "rotationdegrees", "angledeg", "angledegrees", "anglerad", "rotated", "isrotated"}
)  # fmt: skip
_BOX_MODES = frozenset({"bboxmode", "boxmode"})
_CORNERS_MODE, _SIZES_MODE = "0", "1"
"""Detectron2's codes for boxes x1, y1, x2, y2 and for COCO's boxes."""
_BOX_FORMATS = frozenset({"bboxformat", "boxformat", "bboxtype", "boxtype", "boxesformat", "bboxesformat", *_BOX_MODES})
_CORNERS = ("xyxy", "ltrb", "tlbr", "voc", "corner")
_SIZES = ("xywh", "ltwh", "tlwh", "coco")
_FOREIGN_FORMS = ("yxyx", "cxcy", "xcyc", "yolo", "center", "centre", "norm", "rel", "percent")
"""Parts of the values of these keys that stand for corners, for COCO's form and for other forms."""
_FRACTIONS = frozenset({"normalized", "normalised", "isnormalized", "isnormalised", "relative", "isrelative"})


def _is_rotated(value: object) -> bool:
    """Whether an angle, in degrees or radians, rotates a box away from upright."""
    if isinstance(value, bool):
        return value
    try:
        angle = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return _is_true(value)
    return not math.isfinite(angle) or abs(math.remainder(angle, _HALF_TURN)) > _ROTATION_TOLERANCE


def _is_foreign_form(name: str, value: object, *, has_corners: bool) -> bool:
    """Whether a key declares boxes in another form than the format's, or not in pixels."""
    if name in _FRACTIONS:
        return _is_true(value)
    if name not in _BOX_FORMATS or not isinstance(value, int | str) or isinstance(value, bool):
        return False
    text = _text(value).replace("_", "").casefold()
    if name in _BOX_MODES and text.isdecimal():
        return text != (_CORNERS_MODE if has_corners else _SIZES_MODE)
    return any(form in text for form in (*_FOREIGN_FORMS, *(_SIZES if has_corners else _CORNERS)))


def decoded(value: object) -> object:
    """The value of a key, decoded if it is still JSON text; None if that is not valid JSON."""
    if not isinstance(value, msgspec.Raw):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
