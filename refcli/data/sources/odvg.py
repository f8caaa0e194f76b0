"""ODVG, the JSON lines of Open-GroundingDino and MM-Grounding-DINO: phrases with boxes, or detection labels.

A line is one image: `{"filename", "height", "width"}` with `"grounding": {"caption", "regions": [{"bbox", "phrase"}]}`,
with `"detection": {"instances": [{"bbox", "label", "category"}]}`, or with both. A `bbox` is `[x1, y1, x2, y2]` in
pixels, the far edge exclusive, or a list of such boxes; a `phrase` is a string, or a list of strings that all mean the
same boxes. The caption is not an expression; a phrase need not occur in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from refcli.config.schema import Settings
from refcli.data.sources.image_names import Whose, named_image
from refcli.data.sources.json_lines import are_fractions, read_rows, some_object_has
from refcli.data.sources.known_keys import KeyLog, KnownKeys, MeaningError, WholeFileError
from refcli.data.sources.record import CATEGORY, BoxXYXY, Problems, RawExpression, RawRecord, RawRegion, Source
from refcli.data.sources.rows import decode_row, side_of
from refcli.errors import DataError

_NUMBERS_OF_A_BOX = 4


class OdvgSettings(Settings):
    """Choices of the ODVG reader."""

    detection: bool = False
    """Also read detection labels: the name of a category is an expression that means all its instances."""
    expressions: Literal["given", "category"] = "given"
    """`category`: only the names of categories are expressions; phrases are not read."""
    images: Whose = "auto"
    """Whose photographs these are: `auto`: COCO's where a name begins as COCO_train2014_; `coco`: also those that are a
    number of twelve digits; `own`: nobody else's."""

    @property
    def reads_labels(self) -> bool:
        """Whether names of categories are expressions."""
        return self.detection or self.expressions == CATEGORY

    @property
    def reads_phrases(self) -> bool:
        """Whether phrases are expressions."""
        return self.expressions != CATEGORY


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

    Phrases are the same if they differ in case or surrounding blanks only; the first spelling is kept.

    Args:
        files: split -> file.
        settings: an `OdvgSettings`.
        dataset: names images that are not COCO's.
        problems: `broken_line`; `broken_region` (its phrase is left out); `image_without_phrase`; `left_out_detection`
            (a line whose detection labels the settings do not ask for); `instance_without_category`;
            `unreadable_value`, `unused_key`.
    """
    assert isinstance(settings, OdvgSettings)
    for split, path in files.items():
        num_records = 0
        reading = _Reading(split, settings, dataset, problems, KeyLog(path.name, problems))
        for records in read_rows(path, reading.records, problems):
            num_records += len(records)
            yield from records
        reading.keys.finish()
        if not num_records:
            raise DataError(
                "no line has a phrase with a box",
                where=str(path),
                hint="for detection labels, set detection to true (or --expressions category)"
                if problems.counts["left_out_detection"]
                else 'phrases lie in "grounding": {"regions": [...]}',
            )


def sniff_odvg(path: Path) -> bool:
    """Whether a file begins with a line of ODVG."""
    return some_object_has(path, b"filename", b"grounding", b"regions") or some_object_has(
        path, b"filename", b"detection", b"instances"
    )


_Labelled = tuple[tuple[str, ...], list[BoxXYXY] | None]
"""The texts of a region, and its boxes; None: they cannot be read."""


@dataclass(frozen=True)
class _Reading:
    """Everything that stays the same while a file is read."""

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
        row = decode_row(line, _Line, where=where, problems=self.problems, needed=(), keys=(_LINE_KEYS, self.keys))
        if not row.filename.strip():
            raise DataError("the filename is empty", where=where)
        has_grounding, has_detection = (bytes(part) != b"null" for part in (row.grounding, row.detection))
        if not has_grounding and not has_detection:
            raise DataError("there is neither grounding nor detection", where=where)
        image = named_image(
            row.filename,
            dataset=self.dataset,
            width=side_of(row.width),
            height=side_of(row.height),
            whose=self.settings.images,
        )
        phrases, categories = {}, {}
        if has_grounding and self.settings.reads_phrases:
            phrases = self._phrases(row.grounding, where)
        if has_detection and self.settings.reads_labels:
            categories = self._categories(row.detection, where)
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

    def _phrases(self, text: msgspec.Raw, where: str) -> dict[str, tuple[str, list[BoxXYXY]]]:
        grounding = decode_row(
            text,
            _Grounding,
            where=f"{where}, grounding",
            problems=self.problems,
            needed=(),
            keys=(_GROUNDING_KEYS, self.keys),
        )
        return self._merged("region", grounding.regions, where, self._region)

    def _categories(self, text: msgspec.Raw, where: str) -> dict[str, tuple[str, list[BoxXYXY]]]:
        detection = decode_row(
            text,
            _Detection,
            where=f"{where}, detection",
            problems=self.problems,
            needed=(),
            keys=(_DETECTION_KEYS, self.keys),
        )
        return self._merged("instance", detection.instances, where, self._instance)

    def _merged(
        self, what: str, rows: list[msgspec.Raw], where: str, read: Callable[[msgspec.Raw, str], _Labelled]
    ) -> dict[str, tuple[str, list[BoxXYXY]]]:
        """The texts of all regions and their boxes, without those one of whose boxes cannot be read.

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
        incomplete = {_compared(text) for texts, boxes in labelled if boxes is None for text in texts}
        merged = _merge((text, boxes) for texts, boxes in labelled if boxes is not None for text in texts)
        return {key: phrase for key, phrase in merged.items() if key not in incomplete}

    def _region(self, raw: msgspec.Raw, where: str) -> _Labelled:
        region = decode_row(
            raw, _Region, where=where, problems=self.problems, needed=(), keys=(_REGION_KEYS, self.keys)
        )
        texts = (region.phrase,) if isinstance(region.phrase, str) else tuple(region.phrase)
        return texts, _boxes(region.bbox, where)

    def _instance(self, raw: msgspec.Raw, where: str) -> _Labelled:
        instance = decode_row(
            raw, _Instance, where=where, problems=self.problems, needed=(), keys=(_INSTANCE_KEYS, self.keys)
        )
        if not instance.category:
            self.problems.add("instance_without_category", where)
            return (), []
        return (instance.category,), _boxes(instance.bbox, where)


def _texts_of(raw: msgspec.Raw) -> tuple[str, ...]:
    """The texts of a region that cannot be read otherwise."""
    try:
        label = msgspec.json.decode(raw, type=_Label, strict=False)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ()
    texts = label.category if label.phrase is None else label.phrase
    return (texts,) if isinstance(texts, str) else tuple(texts or ())


def _compared(text: str) -> str:
    return text.strip().lower()


def _merge(phrases: Iterable[tuple[str, list[BoxXYXY]]]) -> dict[str, tuple[str, list[BoxXYXY]]]:
    """Compared form of a phrase -> its first spelling and the distinct boxes of all its occurrences."""
    merged: dict[str, tuple[str, list[BoxXYXY]]] = {}
    for text, boxes in phrases:
        _, known = merged.setdefault(_compared(text), (text, []))
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
        raise DataError("bbox is in fractions of the image; give it in pixels", where=where)
    return [(x1, y1, x2, y2) for x1, y1, x2, y2 in boxes]


SOURCE = Source(
    description="ODVG: JSON lines with filename and grounding regions or detection instances",
    read=read_odvg,
    settings=OdvgSettings,
    files={"*": ()},
    sniff=sniff_odvg,
)
