"""ODVG, the JSON lines of Open-GroundingDino and MM-Grounding-DINO: phrases with boxes, or detection labels.

A line is one image: `{"filename", "height", "width"}` with `"grounding": {"caption", "regions": [{"bbox", "phrase"}]}`,
with `"detection": {"instances": [{"bbox", "label", "category"}]}`, or with both. A `bbox` is `[x1, y1, x2, y2]` in
pixels, the far edge exclusive, or a list of such boxes; a `phrase` is a string, or a list of strings that all mean the
same boxes. The caption is not an expression; a phrase need not occur in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from refcli.config.schema import Settings
from refcli.data.reading.json_files import parse_json
from refcli.data.sources.json_lines import are_fractions, first_object_has, read_rows
from refcli.data.sources.picture_names import named_image
from refcli.data.sources.record import BoxXYXY, Problems, RawExpression, RawRecord, RawRegion, Source
from refcli.errors import DataError

CATEGORY = "category"
"""Kind of an expression that is the name of a category."""
_NUMBERS_OF_A_BOX = 4


class OdvgSettings(Settings):
    """Choices of the ODVG reader."""

    detection: bool = False
    """Also read detection labels: the name of a category is an expression that means all its instances."""


class _Region(msgspec.Struct):
    bbox: list[float | list[float]]
    phrase: str | list[str]


class _Grounding(msgspec.Struct):
    regions: list[_Region]


class _Instance(msgspec.Struct):
    bbox: list[float | list[float]]
    category: str | None = None


class _Detection(msgspec.Struct):
    instances: list[_Instance]


class _Line(msgspec.Struct):
    filename: str
    height: int | None = None
    width: int | None = None
    grounding: _Grounding | None = None
    detection: _Detection | None = None


def read_odvg(
    files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
) -> Iterator[RawRecord]:
    """Yield one record per distinct phrase of an image, with the boxes of all regions that have it; see `Reader`.

    Phrases are the same if they differ in case or surrounding blanks only; the first spelling is kept.

    Args:
        files: split -> file.
        settings: an `OdvgSettings`.
        dataset: names pictures that are not COCO's.
        problems: `broken_line`; `image_without_phrase`; `left_out_detection` (a line whose detection labels the
            settings do not ask for); `instance_without_category`.
    """
    assert isinstance(settings, OdvgSettings)
    for split, path in files.items():
        num_records = 0

        def parse(line: bytes, number: int, where: str, split: str = split) -> list[RawRecord]:
            row = parse_json(line, _Line, where=where)
            return _records(row, number, where, split, settings, dataset, problems)

        for records in read_rows(path, parse, problems):
            num_records += len(records)
            yield from records
        if not num_records:
            raise DataError(
                "no line has a phrase with a box",
                where=str(path),
                hint="for detection labels, set detection to true"
                if problems.counts["left_out_detection"]
                else 'phrases lie in "grounding": {"regions": [...]}',
            )


def sniff_odvg(path: Path) -> bool:
    """Whether a file begins with a line of ODVG."""
    return first_object_has(path, b"filename", b"grounding", b"regions") or first_object_has(
        path, b"filename", b"detection", b"instances"
    )


def _records(
    row: _Line, number: int, where: str, split: str, settings: OdvgSettings, dataset: str, problems: Problems
) -> list[RawRecord]:
    if not row.filename.strip():
        raise DataError("the filename is empty", where=where)
    if row.grounding is None and row.detection is None:
        raise DataError("there is neither grounding nor detection", where=where)
    image = named_image(row.filename, dataset=dataset, width=row.width, height=row.height)
    # The whole line is read before anything is told, so that a broken one is listed once.
    phrases = _merged(_phrases(row.grounding, where))
    categories = _merged(_categories(row.detection, where)) if settings.detection else {}
    if row.grounding is not None and not phrases:
        problems.add("image_without_phrase", where, row.filename)
    if row.detection is not None:
        if not settings.detection:
            problems.add("left_out_detection", where, f"{len(row.detection.instances)} instances")
        elif nameless := sum(not instance.category for instance in row.detection.instances):
            problems.add("instance_without_category", where, f"{nameless} instances")
    texts: list[tuple[str, list[BoxXYXY], str | None]] = [(*phrase, None) for phrase in phrases.values()]
    texts += [(text, boxes, CATEGORY) for key, (text, boxes) in categories.items() if key not in phrases]
    return [
        RawRecord(
            split=split,
            image=image,
            expressions=(RawExpression(f"{number}/{index}", text),),
            regions=tuple(RawRegion(box) for box in boxes),
            where=where,
            kind=kind,
        )
        for index, (text, boxes, kind) in enumerate(texts)
    ]


def _phrases(grounding: _Grounding | None, where: str) -> Iterator[tuple[str, list[BoxXYXY]]]:
    for index, region in enumerate(grounding.regions if grounding else ()):
        boxes = _boxes(region.bbox, f"{where}, region {index}")
        for text in (region.phrase,) if isinstance(region.phrase, str) else region.phrase:
            yield text, boxes


def _categories(detection: _Detection | None, where: str) -> Iterator[tuple[str, list[BoxXYXY]]]:
    for index, instance in enumerate(detection.instances if detection else ()):
        boxes = _boxes(instance.bbox, f"{where}, instance {index}")
        if instance.category:
            yield instance.category, boxes


def _merged(phrases: Iterable[tuple[str, list[BoxXYXY]]]) -> dict[str, tuple[str, list[BoxXYXY]]]:
    """Compared form of a phrase -> its first spelling and the distinct boxes of all its occurrences."""
    merged: dict[str, tuple[str, list[BoxXYXY]]] = {}
    for text, boxes in phrases:
        _, known = merged.setdefault(text.strip().lower(), (text, []))
        known.extend(box for box in dict.fromkeys(boxes) if box not in known)
    return merged


def _boxes(bbox: list[float | list[float]], where: str) -> list[BoxXYXY]:
    single = [value for value in bbox if isinstance(value, float)]
    boxes = [value for value in bbox if isinstance(value, list)]
    if single and boxes:
        raise DataError("bbox mixes numbers and boxes", where=where)
    boxes = [single] if single else boxes
    if not boxes or any(len(box) != _NUMBERS_OF_A_BOX for box in boxes):
        raise DataError("bbox is neither [x1, y1, x2, y2] nor a list of such boxes", where=where)
    if are_fractions(boxes):
        raise DataError("bbox is in parts of the image; pixels are wanted", where=where)
    return [(x1, y1, x2, y2) for x1, y1, x2, y2 in boxes]


SOURCE = Source(
    description="ODVG: JSON lines with filename and grounding regions or detection instances",
    read=read_odvg,
    settings=OdvgSettings,
    files={"*": ()},
    sniff=sniff_odvg,
)
