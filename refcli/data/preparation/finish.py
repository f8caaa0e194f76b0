"""Turn raw records into examples: repair text, rasterise masks, clip and check boxes."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import msgspec

from refcli.contracts.example import RLE, Example, Region
from refcli.data.preparation.box_evidence import CLIP_TOLERANCE, BoxEvidence
from refcli.data.preparation.dataset_images import Place
from refcli.data.preparation.image_roots import OTHER_SIZE, UNREADABLE, must_fit
from refcli.data.preparation.labels import LabelSurvey, ShownImage, labelled_examples
from refcli.data.reading.images import ImageFacts, probe, read_image, verify
from refcli.data.sources.known_keys import excerpt
from refcli.data.sources.record import Problems, RawRecord, RawRegion
from refcli.data.sources.rows import MAX_SIDE
from refcli.errors import DataError, ImageError, RefcliError
from refcli.files import is_plain_name
from refcli.geometry.boxes import BoxXYXY
from refcli.geometry.masks import check_run_lengths, mask_box, polygons_to_rle, rle_area, runs_to_rle, union_masks
from refcli.text.vlm_text import COORDINATES, PIXELS, ImageSizes

REPLACEMENT_CHARACTER = "\ufffd"
"""The replacement character, which programs write for a character that they cannot decode."""
UNSTORABLE = "unstorable_record"
MAX_TEXT = 1 << 16
"""Maximum number of characters of an id or a kind."""
_MAX_PATH_BYTES = 4096
_MAX_PART_BYTES = 255
"""Limits of operating systems on a path and each of its parts, in bytes."""
_CONTROL = re.compile("[\0-\x1f\x7f]")
_MIN_POLYGON_NUMBERS = 6
_decode = msgspec.json.Decoder().decode
_NUMBERS = frozenset({int, float})
_BLANKS = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Categories of characters that become a blank: controls, lone surrogates, line and paragraph separators."""
_WINDOWS = {code: bytes([code]).decode("cp1252", errors="ignore") or " " for code in range(0x80, 0xA0)}
"""Windows-1252 characters at the codes of Latin-1's control characters."""

PlacedRecord = tuple[RawRecord, Place]
"""A raw record and the place of its image."""


@dataclass(frozen=True, slots=True)
class FinishSettings:
    """Settings of `finish`."""

    dataset: str
    check_images: bool = False
    """Decode every image completely and compare its size with the annotation's."""
    survey: LabelSurvey | None = None
    """For data of labelled images, about which expressions are written."""


class _RotatedImageError(DataError):
    """An image that is rotated when it is read, while its annotation refers to the stored orientation."""


class _OtherSizeError(DataError):
    """An image of another size than its annotation states."""


class _UnknownSizeError(DataError):
    """An image of unknown size whose boxes are not in pixels."""


_KINDS: dict[type[RefcliError], str] = {
    _RotatedImageError: "rotated_picture",
    _OtherSizeError: OTHER_SIZE,
    _UnknownSizeError: "box_in_image_of_unknown_size",
}


def finish(
    placed: Sequence[PlacedRecord],
    settings: FinishSettings,
    problems: Problems,
    evidence: Mapping[str, BoxEvidence] | None = None,
) -> Iterator[Example]:
    """Yield the examples of records, in order.

    Left out and reported to `problems`: empty expressions; records whose image is broken, has another size, or is
    annotated before its EXIF rotation (only for images that are opened: all if `check_images`, else labelled images
    and those that `must_fit`); records with a region whose box is inverted, degenerate, not finite or outside the
    image; labelled images about which no expression is certain. Reported and kept: clipped boxes, masks that are
    unreadable or disagree with their box, repaired text. `evidence` counts how boxes and masks agree, by split.
    """
    evidence = defaultdict(BoxEvidence) if evidence is None else evidence
    for record, place in placed:
        texts = list(_texts(record, problems))
        if not texts and not record.needs_expressions:
            continue
        try:
            width, height = _size(record, place, settings)
            record = _in_pixels(record, width, height)
            pixels = read_image(place.path) if record.needs_expressions and place.path is not None else None
        except (ImageError, DataError) as error:
            kind = _KINDS.get(type(error), UNREADABLE)
            for _ in texts or (record,):
                problems.add(kind, record.where, f"{place.image}: {error.message}")
            continue
        regions = _regions(record, width, height, problems, evidence[record.split])
        if regions is None:
            problems.add("dropped_record", record.where, f"its {len(texts)} expressions are left out")
            continue
        if record.needs_expressions:
            assert settings.survey is not None  # made for every source of labelled images
            image = ShownImage(place.image, width, height, pixels)
            yield from labelled_examples(record, image, regions, settings.dataset, settings.survey, problems)
            continue
        ignored = _ignored(record, width, height, problems)
        for identity, text in texts:
            yield Example(
                id=f"{settings.dataset}/{identity}",
                dataset=settings.dataset,
                split=record.split,
                image=place.image,
                image_id=record.image.key,
                width=width,
                height=height,
                expression=text,
                regions=regions,
                kind=record.kind,
                ignored=ignored,
            )


def _texts(record: RawRecord, problems: Problems) -> Iterator[tuple[str, str]]:
    for expression in record.expressions:
        text = repair_text(expression.text)
        if not text:
            problems.add("empty_expression", record.where, f"{expression.id} {expression.text!r}")
            continue
        if text != expression.text and text != " ".join(expression.text.split()):
            problems.add("repaired_text", record.where, f"{expression.text!r} -> {text!r}")
        if REPLACEMENT_CHARACTER in text:
            problems.add("lost_letter", record.where, repr(text))
        yield expression.id, text


@lru_cache(maxsize=256)
def _image_facts(path: Path, is_decoded: bool) -> ImageFacts:
    return verify(path) if is_decoded else probe(path)


def _size(record: RawRecord, place: Place, settings: FinishSettings) -> tuple[int, int]:
    """(width, height): the annotation's, else the image's, else (0, 0) for unknown."""
    image = record.image
    stated = (image.width or 0, image.height or 0)
    is_opened = settings.check_images or record.needs_expressions or must_fit(image)
    if place.path is None or (all(stated) and not is_opened):
        return stated if all(stated) else (0, 0)
    found = _image_facts(place.path, settings.check_images)
    if all(stated) and found.orientation != 1 and stated == found.raw_size:
        raise _RotatedImageError(
            f"its EXIF orientation is {found.orientation}, but its boxes refer to the unrotated image of "
            f"{stated[0]} x {stated[1]}: save it again without the tag (jpegtran -copy none)"
        )
    if all(stated) and stated != found.size:
        raise _OtherSizeError(
            f"the image is {found.width} x {found.height}, its annotation says {stated[0]} x {stated[1]}"
        )
    return found.size


def _in_pixels(record: RawRecord, width: int, height: int) -> RawRecord:
    """The record with boxes in pixels of its image, not clipped."""
    if record.coordinates == PIXELS or not record.regions:
        return record
    if not width:
        raise _UnknownSizeError(
            f"its boxes are in the space {record.coordinates}, which needs the size of the image: add width and height "
            "to the record, or give --images"
        )
    to_pixels = COORDINATES[record.coordinates](ImageSizes(width, height))

    def placed(region: RawRegion) -> RawRegion:
        if region.box_xyxy is None:
            return region
        x1, y1, x2, y2 = region.box_xyxy
        return replace(region, box_xyxy=(*to_pixels(x1, y1), *to_pixels(x2, y2)))

    return replace(record, regions=tuple(map(placed, record.regions)), coordinates=PIXELS)


def _regions(
    record: RawRecord, width: int, height: int, problems: Problems, evidence: BoxEvidence
) -> tuple[Region, ...] | None:
    """The regions of a record; None if one of them is unusable."""
    regions = []
    for raw in record.regions:
        mask = _mask(raw, width, height, record.where, problems)
        if raw.segmentation is not None or raw.has_lost_mask:
            evidence.add_mask(is_read=mask is not None)
        box = raw.box_xyxy or (mask_box(mask) if mask is not None else None)
        wrong = _box_problem(box, width, height)
        if box is None or wrong:
            problems.add(wrong or "region_without_box", record.where, f"{raw.source_id or ''} {box}".strip())
            return None
        evidence.add_box(box, width, height)
        if width:
            clipped = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(width)), min(box[3], float(height)))
            if max(abs(a - b) for a, b in zip(box, clipped, strict=True)) > CLIP_TOLERANCE:
                problems.add("clipped_box", record.where, f"{box} in an image of {width} x {height}")
            if mask is not None and raw.box_xyxy is not None:
                extent = mask_box(mask)
                if not evidence.add_box_and_mask(box, extent, width, height):
                    problems.add("mask_disagrees_with_box", record.where, f"box {clipped}, mask {extent}")
            box = clipped
        regions.append(Region(box, mask, raw.source_id))
    return tuple(regions)


def _mask(raw: RawRegion, width: int, height: int, where: str, problems: Problems) -> RLE | None:
    if raw.segmentation is None:
        return None
    if not width:
        problems.add("mask_in_picture_of_unknown_size", where, "give width and height, or the images with --images")
        return None
    try:
        mask = region_mask(raw, height, width)
    except DataError as error:
        problems.add("unreadable_mask", where, error.message)
        return None
    if mask is None or not rle_area(mask):
        problems.add("empty_mask", where, raw.source_id or "")
        return None
    return mask


def _ignored(record: RawRecord, width: int, height: int, problems: Problems) -> RLE | None:
    """The pixels of a record that no mask metric counts; an unreadable mask of them is reported."""
    if record.ignored is None:
        return None
    return _mask(RawRegion(None, record.ignored, "ignored region"), width, height, record.where, problems)


def _box_problem(box: BoxXYXY | None, width: int, height: int) -> str | None:
    if box is None:
        return None
    x1, y1, x2, y2 = box
    if not all(map(math.isfinite, box)):
        return "box_not_finite"
    if x2 < x1 or y2 < y1:
        return "inverted_box"
    if x2 == x1 or y2 == y1:
        return "degenerate_box"
    if width and (x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0):
        return "box_outside_the_image"
    return None


def storable(records: Iterable[RawRecord], problems: Problems) -> Iterator[RawRecord]:
    """The records that a store can hold; the others are reported as `unstorable_record`."""
    for record in records:
        fault = _why_unstorable(record)
        if fault is None:
            yield record
        else:
            problems.add(UNSTORABLE, excerpt(record.where, 200), f"{fault}; {len(record.expressions)} expressions")


def _why_unstorable(record: RawRecord) -> str | None:
    if not is_plain_name(record.split) or _CONTROL.search(record.split):
        return f"{excerpt(record.split)!r} cannot be the name of a split"
    image = record.image
    for side in (image.width, image.height):
        if side is not None and not 0 <= side <= MAX_SIDE:
            return f"its image is {excerpt(image.width)} x {excerpt(image.height)}"
    if not all(map(_is_path, image.names[:1])):
        return f"{excerpt(image.names[0])!r} cannot be the name of a file"
    texts = (
        image.key,
        record.kind,
        *(one.id for one in record.expressions),
        *(one.source_id for one in record.regions),
    )
    odd = next((text for text in texts if text is not None and not _is_text(text)), None)
    return None if odd is None else f"{excerpt(odd)!r} cannot be stored as an id, a kind or a name"


def _is_path(name: str) -> bool:
    if not _is_text(name) or "\0" in name:
        return False
    parts = [part.encode() for part in name.split("/")]
    return sum(map(len, parts)) <= _MAX_PATH_BYTES and all(len(part) <= _MAX_PART_BYTES for part in parts)


def _is_text(text: str) -> bool:
    """Whether a text can be encoded as UTF-8 and is not extremely long."""
    if len(text) > MAX_TEXT:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def region_mask(region: RawRegion, height: int, width: int) -> RLE | None:
    """The mask of a raw region at its image's size; None if it has none.

    Polygons (or a single one) are united and rasterised as COCO does; those of fewer than three points or with an odd
    number of coordinates are ignored, and if none remains there is no mask. Lists of run lengths are united.

    Raises:
        DataError: the segmentation is invalid, has another image size, lies far outside the image, or has run lengths
            that do not fill it.
    """
    given = region.segmentation
    if given is None:
        return None
    if callable(given) and not isinstance(given, RLE):
        given = given()
    if isinstance(given, bytes):
        return _from_json(given, height, width)
    if given is not None:
        _check_size(given.size, height, width)
        check_run_lengths(given)
    return given


def _from_json(text: bytes, height: int, width: int) -> RLE | None:
    try:
        value = _decode(text) if text else None
        return _from_value(value, height, width)
    except RecursionError as error:
        raise DataError("the segmentation is nested too deeply") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"the segmentation cannot be read: {error}") from error


def _from_value(value: object, height: int, width: int) -> RLE | None:
    if value is None:
        return None
    if isinstance(value, dict):
        return _from_run_lengths(value, height, width)
    if not isinstance(value, list):
        raise DataError(f"the segmentation cannot be read: neither polygons nor run lengths but {excerpt(value)}")
    if value and all(isinstance(part, dict) for part in value):
        return union_masks([_from_run_lengths(one, height, width) for one in value])
    parts = [value] if value and _are_numbers(value) else value
    polygons: list[list[float]] = []
    for part in parts:
        if not isinstance(part, list) or not _are_numbers(part):
            raise DataError(f"the segmentation cannot be read: a polygon is not a list of numbers but {excerpt(part)}")
        if len(part) >= _MIN_POLYGON_NUMBERS and not len(part) % 2:
            polygons.append(part)
    return polygons_to_rle(polygons, height, width) if polygons else None


def _are_numbers(values: list[object]) -> bool:
    """Whether all values that were decoded from JSON are numbers; true and false are not."""
    return set(map(type, values)) <= _NUMBERS


def _from_run_lengths(value: Mapping[str, object], height: int, width: int) -> RLE:
    size, counts = value.get("size"), value.get("counts")
    if not isinstance(size, list) or [type(side) for side in size] != [int, int]:
        raise DataError(f"the segmentation cannot be read: its size is not height and width but {excerpt(size)}")
    _check_size(tuple(size), height, width)
    if isinstance(counts, str):
        if not counts.isascii():
            raise DataError("the run lengths are damaged")
        mask = RLE((height, width), counts.encode("ascii"))
        check_run_lengths(mask)
        return mask
    if not isinstance(counts, list):
        raise DataError(f"the segmentation cannot be read: its counts are {excerpt(counts)}")
    if not all(type(run) is int for run in counts):
        raise DataError("a run length is negative or not a whole number")
    return runs_to_rle(counts, height, width)


def _check_size(size: tuple[int, ...], height: int, width: int) -> None:
    if tuple(size) != (height, width):
        raise DataError(f"the mask has the size {tuple(size)}, but the image {(height, width)}")


def repair_text(text: str) -> str:
    """Repair a text: NFC, single blanks, no control characters or lone surrogates, correct encoding.

    UTF-8 or Windows-1252 that was read as Latin-1 is decoded again. Spelling, case and punctuation are unchanged.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", _repair_encoding(text))
    if not text.isprintable():
        text = "".join(" " if unicodedata.category(letter) in _BLANKS else letter for letter in text)
    return " ".join(text.split())


def _repair_encoding(text: str) -> str:
    """Decode text whose UTF-8 or Windows-1252 bytes were read as Latin-1; other text is unchanged."""
    with suppress(UnicodeError):
        text = text.encode("latin-1").decode("utf-8")
    return text.translate(_WINDOWS)
