"""From raw records to examples: text repaired, masks rasterised, boxes clipped and checked."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from refcli.contracts.example import RLE, Example, Region
from refcli.data.image import ImageFacts, decode, probe
from refcli.data.preparation.box_evidence import CLIP_TOLERANCE, BoxEvidence
from refcli.data.preparation.images import OTHER_SIZE, UNREADABLE, must_fit
from refcli.data.preparation.masks import region_mask
from refcli.data.preparation.text import repair_text
from refcli.data.sources.record import BoxXYXY, Problems, RawRecord, RawRegion
from refcli.errors import DataError, ImageError, RefcliError
from refcli.geometry.masks import mask_box, rle_area

LOST_LETTER = "\ufffd"
"""What programs write in the place of a letter that they could not read."""


@dataclass(frozen=True, slots=True)
class PlacedRecord:
    """A raw record whose image was found, or not looked for."""

    record: RawRecord
    image: str
    """Path relative to the data set's image root."""
    path: Path | None
    """Where the image lies; None if images were not looked for."""


@dataclass(frozen=True, slots=True)
class Finishing:
    """What `finish` has to know."""

    dataset: str
    check_images: bool = False
    """Decode every image whole and compare its size with the annotation's."""


class _RotatedPictureError(DataError):
    """An image that is turned when it is read, but not its annotation."""


class _OtherSizeError(DataError):
    """An image of another size than its annotation says."""


_KINDS: dict[type[RefcliError], str] = {_RotatedPictureError: "rotated_picture", _OtherSizeError: OTHER_SIZE}


def finish(
    placed: Sequence[PlacedRecord],
    how: Finishing,
    problems: Problems,
    evidence: Mapping[str, BoxEvidence] | None = None,
) -> Iterator[Example]:
    """Examples of records, in order.

    What cannot be used is left out and reported to `problems`: empty expressions; records with an image that is broken
    or of another size, or whose boxes refer to it as it is before it is turned upright (only of images that are
    looked into: all if they are checked, else those that `must_fit`); records with a region whose box is inverted,
    degenerate, not finite or outside the image. Reported and kept: boxes that were clipped, masks that
    cannot be read or disagree with their box, text that was repaired. What boxes and masks show about each other is
    counted in `evidence`, by split.
    """
    evidence = defaultdict(BoxEvidence) if evidence is None else evidence
    for one in placed:
        record = one.record
        texts = list(_texts(record, problems))
        if not texts:
            continue
        try:
            width, height = _size(one, how)
        except (ImageError, DataError) as error:
            kind = _KINDS.get(type(error), UNREADABLE)
            for _ in texts:
                problems.add(kind, record.where, f"{one.image}: {error.message}")
            continue
        regions = _regions(record, width, height, problems, evidence[record.split])
        if regions is None:
            problems.add("dropped_record", record.where, f"its {len(texts)} expressions are left out")
            continue
        for identity, text in texts:
            yield Example(
                id=f"{how.dataset}/{identity}",
                dataset=how.dataset,
                split=record.split,
                image=one.image,
                image_id=record.image.key,
                width=width,
                height=height,
                expression=text,
                regions=regions,
                kind=record.kind,
            )


def _texts(record: RawRecord, problems: Problems) -> Iterator[tuple[str, str]]:
    for expression in record.expressions:
        text = repair_text(expression.text)
        if not text:
            problems.add("empty_expression", record.where, f"{expression.id} {expression.text!r}")
            continue
        if text != expression.text and text != " ".join(expression.text.split()):
            problems.add("repaired_text", record.where, f"{expression.text!r} -> {text!r}")
        if LOST_LETTER in text:
            problems.add("lost_letter", record.where, repr(text))
        yield expression.id, text


@lru_cache(maxsize=256)
def _picture_facts(path: Path, is_decoded: bool) -> ImageFacts:
    return decode(path) if is_decoded else probe(path)


def _size(one: PlacedRecord, how: Finishing) -> tuple[int, int]:
    """(width, height): the annotation's, else the image's, else (0, 0) for unknown."""
    image = one.record.image
    told = (image.width or 0, image.height or 0)
    if one.path is None or (all(told) and not how.check_images and not must_fit(image)):
        return told if all(told) else (0, 0)
    found = _picture_facts(one.path, how.check_images)
    if all(told) and found.orientation != 1 and told == found.raw_size:
        raise _RotatedPictureError(
            f"its EXIF orientation is {found.orientation}, but its boxes refer to the unturned image of "
            f"{told[0]} x {told[1]}: save it again without the tag (jpegtran -copy none)"
        )
    if all(told) and told != found.size:
        raise _OtherSizeError(f"the image is {found.width} x {found.height}, its annotation says {told[0]} x {told[1]}")
    return found.size


def _regions(
    record: RawRecord, width: int, height: int, problems: Problems, evidence: BoxEvidence
) -> tuple[Region, ...] | None:
    """The regions of a record; None if one of them cannot be used."""
    regions = []
    for raw in record.regions:
        mask = _mask(raw, width, height, record.where, problems)
        if raw.segmentation is not None or raw.has_lost_mask:
            evidence.saw_mask(is_read=mask is not None)
        box = raw.box_xyxy or (mask_box(mask) if mask is not None else None)
        wrong = _wrong(box, width, height)
        if box is None or wrong:
            problems.add(wrong or "region_without_box", record.where, f"{raw.source_id or ''} {box}".strip())
            return None
        evidence.saw_box(box, width, height)
        if width:
            clipped = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(width)), min(box[3], float(height)))
            if max(abs(a - b) for a, b in zip(box, clipped, strict=True)) > CLIP_TOLERANCE:
                problems.add("clipped_box", record.where, f"{box} in an image of {width} x {height}")
            if mask is not None and raw.box_xyxy is not None:
                extent = mask_box(mask)
                if not evidence.saw_box_and_mask(box, extent, width, height):
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


def _wrong(box: BoxXYXY | None, width: int, height: int) -> str | None:
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
