"""ODVG, the JSON lines of Open-GroundingDino and MM-Grounding-DINO: phrases with boxes, or detection labels.

A line is one image: `{"filename", "height", "width"}` with `"grounding": {"caption", "regions": [{"bbox", "phrase"}]}`,
with `"detection": {"instances": [{"bbox", "label", "category"}]}`, or with both. A `bbox` is `[x1, y1, x2, y2]` in
pixels, the far edge exclusive, or a list of such boxes; a `phrase` is a string, or a list of strings that refer to the
same boxes. The caption is not an expression; a phrase need not occur in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from refcli.config.schema import Settings
from refcli.data.sources.image_names import ImageOrigin, named_image
from refcli.data.sources.known_keys import KeyLog, KnownKeys, MeaningError, WholeFileError
from refcli.data.sources.labels import TEMPLATE, LabelSettings, labelled_records
from refcli.data.sources.record import CATEGORY, Problems, RawExpression, RawImage, RawRecord, RawRegion, Source
from refcli.data.sources.rows import (
    NUMBERS_OF_A_BOX,
    Row,
    are_fractions,
    decode_row,
    read_json_lines,
    some_line_has,
    valid_side,
)
from refcli.errors import DataError
from refcli.geometry.boxes import BoxXYXY


class OdvgSettings(LabelSettings):
    """Options of the ODVG reader; with `expressions` other than `given`, phrases are not read."""

    detection: bool = False
    """Whether to read detection labels too: the name of a category is an expression for all its instances."""
    images: ImageOrigin = "auto"
    """Where the images come from. `auto`: COCO where a name starts with COCO_train2014_; `coco`: also where it is a
    number of twelve digits; `own`: the data set itself."""

    @property
    def reads_labels(self) -> bool:
        """Whether category names are expressions."""
        return self.detection or self.expressions == CATEGORY

    @property
    def reads_phrases(self) -> bool:
        """Whether phrases are expressions."""
        return self.expressions == "given"


class _Region(msgspec.Struct):
    bbox: list[float | list[float]]
    phrase: str | list[str]


class _Grounding(msgspec.Struct):
    regions: list[msgspec.Raw]


class _Instance(msgspec.Struct):
    bbox: list[float | list[float]]
    category: str | None = None


class _Detection(msgspec.Struct):
    instances: list[msgspec.Raw]


class _Line(msgspec.Struct):
    filename: str
    height: int | None = None
    width: int | None = None
    grounding: msgspec.Raw = msgspec.Raw(b"null")
    detection: msgspec.Raw = msgspec.Raw(b"null")


class _Label(msgspec.Struct):
    phrase: str | list[str] | None = None
    category: str | None = None


_LINE_KEYS = KnownKeys(
    "line",
    frozenset(_Line.__struct_fields__),
    frozenset({"image_id", "id", "source", "dataset"}),
    has_corners=True,
)
_GROUNDING_KEYS = KnownKeys("grounding", frozenset({"regions"}), frozenset({"caption"}), has_corners=True)
_DETECTION_KEYS = KnownKeys("detection", frozenset({"instances"}), has_corners=True)
_REGION_KEYS = KnownKeys(
    "region",
    frozenset({"bbox", "phrase"}),
    frozenset({"tokens_positive", "score", "scores"}),
    has_box=True,
    has_corners=True,
)
_INSTANCE_KEYS = KnownKeys(
    "instance",
    frozenset({"bbox", "category"}),
    frozenset({"label", "area", "score"}),
    has_box=True,
    has_corners=True,
)


def read_odvg(
    files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
) -> Iterator[RawRecord]:
    """Yield one record per distinct phrase of an image, with the boxes of all regions that have it; see `Reader`.

    Phrases that differ only in case or surrounding blanks are the same; the first spelling is kept. With templates, one
    record per line with detection labels; a line with an unreadable one is left out.

    Args:
        files: split -> file.
        settings: an `OdvgSettings`.
        dataset: prefix of the keys of images that are not COCO's.
        problems: collects `broken_line`; `broken_region` (its phrase is left out); `image_without_phrase`;
            `left_out_detection` (a line with detection labels that the settings leave out);
            `instance_without_category`; `unreadable_value`, `unused_key`.
    """
    assert isinstance(settings, OdvgSettings)
    for split, path in files.items():
        num_records = 0
        reading = _Reading(split, settings, dataset, problems, KeyLog(path.name, problems))
        for records in read_json_lines(path, reading.records, problems):
            num_records += len(records)
            yield from records
        reading.keys.finish()
        if not num_records:
            if settings.expressions == TEMPLATE:
                raise DataError("no line has detection labels that can be used", where=str(path))
            raise DataError(
                "no line has a phrase with a box",
                where=str(path),
                hint="for detection labels, set detection to true (or --expressions category)"
                if problems.counts["left_out_detection"]
                else 'phrases lie in "grounding": {"regions": [...]}',
            )


def sniff_odvg(path: Path) -> bool:
    """Whether a file starts with a line of ODVG."""
    return some_line_has(path, b"filename", b"grounding", b"regions") or some_line_has(
        path, b"filename", b"detection", b"instances"
    )


_Labelled = tuple[tuple[str, ...], list[BoxXYXY] | None]
"""The texts of a region and its boxes; None: the boxes cannot be read."""
_BoxesByText = dict[str, tuple[str, list[BoxXYXY]]]
"""Text in comparable form -> its first spelling and its boxes."""


@dataclass(frozen=True)
class _Reading:
    """The state of one file while it is read."""

    split: str
    settings: OdvgSettings
    dataset: str
    problems: Problems
    keys: KeyLog

    def records(self, line: bytes, number: int, where: str) -> list[RawRecord]:
        """The records of a line.

        Raises:
            DataError: the line cannot be used.
        """
        row = self._decode(line, _Line, where, _LINE_KEYS)
        if not row.filename.strip():
            raise DataError("the filename is empty", where=where)
        has_grounding, has_detection = (bytes(part) != b"null" for part in (row.grounding, row.detection))
        if not has_grounding and not has_detection:
            raise DataError("there is neither grounding nor detection", where=where)
        image = named_image(
            row.filename,
            dataset=self.dataset,
            width=valid_side(row.width),
            height=valid_side(row.height),
            origin=self.settings.images,
        )
        if self.settings.expressions == TEMPLATE:
            return self._labels(row.detection, image, where, number) if has_detection else []
        phrases: _BoxesByText = {}
        categories: _BoxesByText = {}
        if has_grounding and self.settings.reads_phrases:
            regions = self._decode(row.grounding, _Grounding, f"{where}, grounding", _GROUNDING_KEYS).regions
            phrases = self._merge_by_text("region", regions, where, self._region)
        if has_detection and self.settings.reads_labels:
            instances = self._decode(row.detection, _Detection, f"{where}, detection", _DETECTION_KEYS).instances
            categories = self._merge_by_text("instance", instances, where, self._instance)
        if has_grounding and not phrases:
            self.problems.add("image_without_phrase", where, row.filename)
        if has_detection and not self.settings.reads_labels:
            self.problems.add("left_out_detection", where, row.filename)
        texts: list[tuple[str, list[BoxXYXY], str | None]] = [(*phrase, None) for phrase in phrases.values()]
        texts += [(text, boxes, CATEGORY) for key, (text, boxes) in categories.items() if key not in phrases]
        return [
            RawRecord(
                split=self.split,
                image=image,
                expressions=(RawExpression(f"{number}/{index}", text),),
                regions=tuple(RawRegion(box) for box in boxes),
                where=where,
                kind=kind,
            )
            for index, (text, boxes, kind) in enumerate(texts)
        ]

    def _labels(self, detection: msgspec.Raw, image: RawImage, where: str, number: int) -> list[RawRecord]:
        """The record of an image with all its instances.

        Raises:
            DataError: one of them cannot be read.
        """
        objects: list[RawRegion] = []
        rows = self._decode(detection, _Detection, f"{where}, detection", _DETECTION_KEYS).instances
        for index, raw in enumerate(rows):
            place = f"{where}, instance {index}"
            instance = self._decode(raw, _Instance, place, _INSTANCE_KEYS)
            objects += [RawRegion(box, category=instance.category or None) for box in _boxes(instance.bbox, place)]
        return list(
            labelled_records(image, objects, self.settings, split=self.split, image_id=str(number), where=where)
        )

    def _decode(self, text: bytes | msgspec.Raw, kind: type[Row], where: str, known: KnownKeys) -> Row:
        return decode_row(text, kind, where=where, problems=self.problems, needed=(), keys=(known, self.keys))

    def _merge_by_text(
        self, what: str, rows: list[msgspec.Raw], where: str, read: Callable[[msgspec.Raw, str], _Labelled]
    ) -> _BoxesByText:
        """The texts of all regions with their boxes; a text with an unreadable box is left out.

        Raises:
            DataError: no region of the line can be read.
        """
        labelled: list[_Labelled] = []
        errors: list[DataError] = []
        for index, raw in enumerate(rows):
            place = f"{where}, {what} {index}"
            try:
                labelled.append(read(raw, place))
            except WholeFileError:
                raise
            except DataError as error:
                error.where = error.where or place
                errors.append(error)
                labelled.append((_texts_of(raw), None))
        if errors and len(errors) == len(rows):
            raise errors[0]
        for fault in errors:
            kind = fault.kind if isinstance(fault, MeaningError) else "broken_region"
            self.problems.add(kind, fault.where or where, fault.message)
        incomplete = {_comparable(text) for texts, boxes in labelled if boxes is None for text in texts}
        merged = _merge((text, boxes) for texts, boxes in labelled if boxes is not None for text in texts)
        return {key: phrase for key, phrase in merged.items() if key not in incomplete}

    def _region(self, raw: msgspec.Raw, where: str) -> _Labelled:
        region = self._decode(raw, _Region, where, _REGION_KEYS)
        texts = (region.phrase,) if isinstance(region.phrase, str) else tuple(region.phrase)
        return texts, _boxes(region.bbox, where)

    def _instance(self, raw: msgspec.Raw, where: str) -> _Labelled:
        instance = self._decode(raw, _Instance, where, _INSTANCE_KEYS)
        if not instance.category:
            self.problems.add("instance_without_category", where)
            return (), []
        return (instance.category,), _boxes(instance.bbox, where)


def _texts_of(raw: msgspec.Raw) -> tuple[str, ...]:
    """The texts of a region that cannot be used, as far as they are readable."""
    try:
        label = msgspec.json.decode(raw, type=_Label, strict=False)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ()
    texts = label.category if label.phrase is None else label.phrase
    return (texts,) if isinstance(texts, str) else tuple(texts or ())


def _comparable(text: str) -> str:
    return text.strip().lower()


def _merge(phrases: Iterable[tuple[str, list[BoxXYXY]]]) -> _BoxesByText:
    """The distinct boxes of all occurrences of each phrase."""
    merged: _BoxesByText = {}
    for text, boxes in phrases:
        _, known = merged.setdefault(_comparable(text), (text, []))
        known.extend(box for box in dict.fromkeys(boxes) if box not in known)
    return merged


def _boxes(bbox: list[float | list[float]], where: str) -> list[BoxXYXY]:
    single = [value for value in bbox if isinstance(value, float)]
    boxes = [value for value in bbox if isinstance(value, list)]
    if single and boxes:
        raise DataError("bbox mixes numbers and boxes", where=where)
    boxes = [single] if single else boxes
    if not boxes or any(len(box) != NUMBERS_OF_A_BOX for box in boxes):
        raise DataError("bbox is neither [x1, y1, x2, y2] nor a list of such boxes", where=where)
    if are_fractions(boxes):
        raise DataError("bbox is in fractions of the image; give it in pixels", where=where)
    return [(x1, y1, x2, y2) for x1, y1, x2, y2 in boxes]


SOURCE = Source(
    description="ODVG: JSON lines with filename and grounding regions or detection instances",
    read=read_odvg,
    settings=OdvgSettings,
    files={"*": ()},
    sniff=sniff_odvg,
)
