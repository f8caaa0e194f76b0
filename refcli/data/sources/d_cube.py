"""D-cube (D3): descriptions of a scenario's objects, in the pickles sentences, annotations, images and groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from refcli.config.schema import Settings
from refcli.data.reading.json_files import convert
from refcli.data.reading.pickles import read_pickle
from refcli.data.reading.streams import text_start
from refcli.data.sources.coco.instances import xywh_to_xyxy
from refcli.data.sources.image_names import own_image
from refcli.data.sources.known_keys import KeyLog, KnownKeys, excerpt
from refcli.data.sources.record import Problems, RawExpression, RawImage, RawRecord, RawRegion, Source
from refcli.data.sources.rows import NUMBERS_OF_A_BOX, Id, Rejections, comparable_id, convert_row, valid_side
from refcli.errors import DataError
from refcli.geometry.boxes import BoxXYXY

SPLIT = "test"
PRESENCE, ABSENCE = "presence", "absence"
"""The kinds of descriptions: of what an object is or has, and of what it lacks."""
_PICKLE_STARTS = (b"\x80", b"(d", b"}")

_SENTENCE = KnownKeys(
    "sentence",
    frozenset({"id", "is_negative", "raw_sent", "raw_sent_zh"}),
    frozenset({"anno_id", "group_id"}),
)
_ANNOTATION = KnownKeys(
    "annotation",
    frozenset({"id", "sent_id", "segmentation", "bbox", "image_id", "iscrowd"}),
    frozenset({"area", "group_id"}),
    has_box=True,
)
_IMAGE = KnownKeys(
    "image",
    frozenset({"id", "file_name", "height", "width", "anno_id", "group_id"}),
    frozenset({"flickr_url", "license"}),
)
_GROUP = KnownKeys(
    "group",
    frozenset({"id", "inner_sent_id"}),
    frozenset({"pos_sent_id", "outer_sent_id", "img_id", "scene", "group_name", "group_name_zh"}),
)


class DCubeSettings(Settings):
    """Options of the D-cube reader."""

    scenario: Literal["intra", "inter"] = "intra"
    """`intra`: each image with the descriptions of its own group, usually four; `inter`: with all descriptions."""
    language: Literal["en", "zh"] = "en"
    """Language of the descriptions: English or Chinese."""


class DCubeRow(msgspec.Struct):
    """A row of one of the pickles."""

    id: int | str


class DCubeSentence(DCubeRow):
    """A description."""

    raw_sent: str
    is_negative: bool
    """Whether it describes what an object lacks ("without a leash"); it may have targets like any other."""
    raw_sent_zh: str | None = None


class DCubeAnnotation(DCubeRow):
    """An object and all descriptions that mean it."""

    image_id: int | str
    sent_id: list[int | str]
    bbox: Any = None
    """Left, top, width, height, or a list of one such list."""
    segmentation: Any = None
    """Run lengths, or a list of them, which belong together."""
    iscrowd: Any = 0


class DCubeImage(DCubeRow):
    """An image, its objects and the group of images with the same descriptions."""

    file_name: str
    group_id: int | str
    anno_id: list[int | str]
    width: int | None = None
    height: int | None = None


class DCubeGroup(DCubeRow):
    """A scenario."""

    inner_sent_id: list[int | str]


_DCubeRow = TypeVar("_DCubeRow", bound=DCubeRow)


def read_d_cube(
    files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
) -> Iterator[RawRecord]:
    """Yield one record per image and description, without regions where no object of the image has it; see `Reader`.

    The id of an expression is `<image id>/<sentence id>`.

    Args:
        files: `sentences`, `annotations`, `images` and `groups`: pickles of dicts by id.
        settings: a `DCubeSettings`.
        dataset: prefix of the keys of images and of the ids of regions.
        problems: collects omitted rows, `broken_row`; images that are left out because an annotation, the group or a
            sentence of theirs cannot be used, `image_without_truth`; `unlisted_annotation`, which no image lists; and
            `crowd_region`, which is kept.

    Raises:
        DataError: a file is not such a pickle, or none of its rows can be used.
    """
    assert isinstance(settings, DCubeSettings)
    reading = _Reading(
        settings,
        dataset,
        problems,
        files["images"].name,
        sentences=_read_rows(files["sentences"], DCubeSentence, _SENTENCE, problems),
        annotations=_read_rows(files["annotations"], DCubeAnnotation, _ANNOTATION, problems),
        groups=_read_rows(files["groups"], DCubeGroup, _GROUP, problems),
    )
    images = _read_rows(files["images"], DCubeImage, _IMAGE, problems)
    listed = {comparable_id(number) for image in images.values() for number in image.anno_id}
    for number in reading.annotations:
        if number not in listed:
            problems.add("unlisted_annotation", f"{files['annotations'].name}: annotation {number}", "no image has it")
    for image in images.values():
        yield from reading.records(image)


def sniff_d_cube(path: Path) -> bool:
    """Whether a file is a pickle that starts as `sentences.pkl` does."""
    start = text_start(path)
    return start.startswith(_PICKLE_STARTS) and b"raw_sent" in start and b"is_negative" in start


def _read_rows(path: Path, kind: type[_DCubeRow], known: KnownKeys, problems: Problems) -> dict[Id, _DCubeRow]:
    """The usable rows of a pickle, by id."""
    rows = convert(read_pickle(path, arrays=True), dict[int | str, object], where=str(path))
    keys = KeyLog(path.name, problems)
    rejected = Rejections(problems)
    found: dict[Id, _DCubeRow] = {}
    for key, row in rows.items():
        where = f"{path.name}: {known.record} {excerpt(key)}"
        try:
            one = convert_row(
                row, kind, where=where, problems=problems, needed=kind.__struct_fields__, keys=(known, keys)
            )
            identity = comparable_id(getattr(one, "id"))  # noqa: B009 - of any of the four kinds
            if identity != comparable_id(key):
                raise DataError(f"its id is {identity}", where=where)
            found[identity] = one
        except DataError as error:
            rejected.add(error, where)
    keys.finish()
    if not found:
        rejected.raise_first()
        raise DataError("the pickle holds no rows", where=str(path), hint="check the file")
    return found


@dataclass(frozen=True)
class _Reading:
    """The rows that all images share."""

    settings: DCubeSettings
    dataset: str
    problems: Problems
    file: str
    sentences: Mapping[Id, DCubeSentence]
    annotations: Mapping[Id, DCubeAnnotation]
    groups: Mapping[Id, DCubeGroup]

    def records(self, image: DCubeImage) -> Iterator[RawRecord]:
        """The records of an image; none if one of its rows cannot be used, because its truth is then unknown."""
        where = f"{self.file}: image {image.id}"
        try:
            place = own_image(
                image.file_name, dataset=self.dataset, width=valid_side(image.width), height=valid_side(image.height)
            )
            sentences = self._sentences_of(image)
            targets = self._targets_of(image)
            records = [self._record(image, place, sentence, targets, where) for sentence in sentences]
        except DataError as error:
            self.problems.add("image_without_truth", where, error.message)
            return
        yield from records

    def _sentences_of(self, image: DCubeImage) -> Sequence[DCubeSentence]:
        if self.settings.scenario == "inter":
            return list(self.sentences.values())
        group = self.groups.get(comparable_id(image.group_id))
        if group is None:
            raise DataError(f"its group {image.group_id} is missing or broken")
        found = {one: self.sentences.get(comparable_id(one)) for one in group.inner_sent_id}
        missing = next((one for one, sentence in found.items() if sentence is None), None)
        if missing is not None:
            raise DataError(f"the sentence {missing} of its group is missing or broken")
        return [sentence for sentence in found.values() if sentence is not None]

    def _targets_of(self, image: DCubeImage) -> Mapping[Id, list[RawRegion]]:
        """Sentence -> its objects in an image."""
        targets: dict[Id, list[RawRegion]] = {}
        for number in dict.fromkeys(image.anno_id):
            annotation = self.annotations.get(comparable_id(number))
            if annotation is None:
                raise DataError(f"its annotation {number} is missing or broken")
            if comparable_id(annotation.image_id) != comparable_id(image.id):
                raise DataError(f"its annotation {number} is of image {annotation.image_id}")
            region = self._region(annotation)
            for sentence in dict.fromkeys(map(comparable_id, annotation.sent_id)):
                targets.setdefault(sentence, []).append(region)
        return targets

    def _region(self, annotation: DCubeAnnotation) -> RawRegion:
        box, mask = _box(annotation), _mask(annotation)
        if box is None and mask is None:
            raise DataError(f"its annotation {annotation.id} has neither a box nor a mask")
        if annotation.iscrowd in (1, [1]):
            self.problems.add(
                "crowd_region", f"{self.file}: image {annotation.image_id}", f"annotation {annotation.id}"
            )
        return RawRegion(box, mask, f"{self.dataset}:{annotation.id}")

    def _record(
        self,
        image: DCubeImage,
        place: RawImage,
        sentence: DCubeSentence,
        targets: Mapping[Id, list[RawRegion]],
        where: str,
    ) -> RawRecord:
        text = sentence.raw_sent if self.settings.language == "en" else sentence.raw_sent_zh
        if text is None:
            raise DataError(f"the sentence {sentence.id} has no Chinese text")
        expression = RawExpression(f"{image.id}/{sentence.id}", text)
        regions = tuple(targets.get(comparable_id(sentence.id), ()))
        return RawRecord(SPLIT, place, (expression,), regions, where, ABSENCE if sentence.is_negative else PRESENCE)


def _box(annotation: DCubeAnnotation) -> BoxXYXY | None:
    """The box, which the published pickles hold as an array of one row."""
    given = annotation.bbox
    if given is None:
        return None
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    where = f"annotation {annotation.id}: bbox"
    numbers = convert(given, list[float], where=where)
    if len(numbers) != NUMBERS_OF_A_BOX:
        raise DataError(f"the bbox of its annotation {annotation.id} is {excerpt(given)}")
    left, top, width, height = numbers
    return xywh_to_xyxy((left, top, width, height))


def _mask(annotation: DCubeAnnotation) -> bytes | None:
    """The segmentation as JSON, whose run lengths are text; bytes in the pickle."""
    given = annotation.segmentation
    if not given:
        return None
    parts = given if isinstance(given, list) else [given]
    texts = [_with_text(part) if isinstance(part, dict) else part for part in parts]
    try:
        return msgspec.json.encode(texts)
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"the segmentation of its annotation {annotation.id} cannot be read") from error


def _with_text(run_lengths: Mapping[object, object]) -> dict[object, object]:
    counts = run_lengths.get("counts")
    text = counts.decode("latin-1") if isinstance(counts, bytes) else counts
    return {**run_lengths, "counts": text}


SOURCE = Source(
    description="D-cube's sentences.pkl with annotations.pkl, images.pkl and groups.pkl",
    read=read_d_cube,
    settings=DCubeSettings,
    files={
        "sentences": ("sentences.pkl",),
        "annotations": ("annotations.pkl",),
        "images": ("images.pkl",),
        "groups": ("groups.pkl",),
    },
    sniff=sniff_d_cube,
)
