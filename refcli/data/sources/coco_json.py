"""COCO-style JSON: the grounding files of MDETR and GLIP, and plain COCO whose annotations carry expressions.

In the files of MDETR and GLIP an "image" is a picture with one caption, and its annotations are what the caption means.
In referring-expression files (`finetune_refcoco*.json`) the caption is the expression; in Flickr30k and mixed files it
is a sentence whose phrases (`tokens_positive`, ranges of characters) are the expressions. In plain COCO an annotation
holds its own expressions, under a key of `coco_rows.EXPRESSION_KEYS`; each annotation is a target of its own.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from refcli.config.schema import Settings
from refcli.data.reading.json_files import read_json
from refcli.data.reading.streams import stem
from refcli.data.sources.coco_instances import Instances, coco_image, read_instances
from refcli.data.sources.coco_rows import EXPRESSION_KEYS, AnnotationRow, CocoFile, ImageRow, Span, join_words
from refcli.data.sources.json_lines import head
from refcli.data.sources.picture_names import coco_id, flickr_image, named_image
from refcli.data.sources.record import Problems, RawExpression, RawImage, RawRecord, RawRegion, Source
from refcli.errors import DataError

INSTANCES = "instances"
Unit = Literal["caption", "phrase", "annotation"]
_PUBLISHED = "final_"
"""How the names of MDETR's and GLIP's files of several kinds begin."""
_PHRASE_FAMILIES = ("flickr", "mixed", "gqa")
_FIRST_KEY = re.compile(rb'\{\s*"(?:info|licenses|type|images|annotations|categories)"\s*:')
_LIST_OF_ROWS = re.compile(rb'"(?:images|annotations|categories)"\s*:\s*\[')


class CocoSettings(Settings):
    """Choices of the reader of COCO-style JSON."""

    unit: Literal["auto", "caption", "phrase", "annotation"] = "auto"
    """What an expression is: a whole caption, the phrases of a caption, or the text of an annotation. `auto`, for each
    image row: annotation if one of its annotations holds a text or there is no caption, else phrase if `dataset_name`
    (without one, a file name that begins with final_) has flickr, mixed or gqa in it, else caption."""
    flickr_boxes: Literal["auto", "correct", "keep"] = "auto"
    """Boxes of MDETR's Flickr30k files are those of the XML: counted from 1, and their width and height are one pixel
    short. `auto` corrects them where `dataset_name` (without one, a file name that begins with final_) has flickr in
    it; `keep` takes the numbers as MDETR and its evaluator do."""


def read_coco(
    files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
) -> Iterator[RawRecord]:
    """Yield one record per caption, per phrase with all its boxes, or per annotation; see `Reader`.

    An annotation with `iscrowd` 1 is a target like any other.

    Args:
        files: split -> file; optionally `instances`, COCO's own annotations, for the masks of boxes that name theirs
            by `original_id`.
        settings: a `CocoSettings`.
        dataset: names pictures that are neither COCO's nor Flickr30k's.
        problems: what is left out: `caption_without_box` (no annotation at all, which is not the same as one that says
            "no target"), `annotation_without_box` (with its record), `annotation_without_image`,
            `annotation_without_expression`, `annotation_without_phrase`, `span_outside_caption`,
            `image_without_caption`. What is told and kept: `mask_missing`, `several_expression_keys`.

    Raises:
        DataError: the file contradicts itself: an id twice, a target beside "no target", a mask of another picture.
    """
    assert isinstance(settings, CocoSettings)
    paths = {split: path for split, path in files.items() if split != INSTANCES}
    parsed = ((split, read_json(path, CocoFile)) for split, path in paths.items())
    instances = None
    if INSTANCES in files:
        held = list(parsed)
        named = (_number(row.original_id) for _, file in held for row in file.annotations)
        wanted = {number for number in named if number is not None}
        instances = read_instances(files[INSTANCES], annotation_ids=wanted)
        parsed = (one for one in held)
    for split, file in parsed:
        reading = _Reading(split, paths[split], dataset, settings, instances, problems)
        seen: set[str] = set()
        for record in reading.records(file):
            for expression in record.expressions:
                if expression.id in seen:
                    raise DataError(f"the id {expression.id} occurs twice", where=record.where)
                seen.add(expression.id)
            yield record
        if not seen:
            raise DataError(
                "there is no expression with a target in it",
                where=str(paths[split]),
                hint="image rows need a caption, or annotations one of: " + ", ".join(EXPRESSION_KEYS),
            )


def sniff_coco(path: Path) -> bool:
    """Whether a file begins as a COCO file does, with or without expressions."""
    beginning = head(path)
    return _FIRST_KEY.match(beginning) is not None and _LIST_OF_ROWS.search(beginning) is not None


@dataclass(frozen=True)
class _Reading:
    """Everything that stays the same while a file is read."""

    split: str
    path: Path
    dataset: str
    settings: CocoSettings
    instances: Instances | None
    problems: Problems

    def records(self, file: CocoFile) -> Iterator[RawRecord]:
        annotations: defaultdict[str, list[AnnotationRow]] = defaultdict(list)
        for annotation in file.annotations:
            annotations[str(annotation.image_id)].append(annotation)
        seen: set[str] = set()
        for image in file.images:
            where = f"{self.path.name}: image {image.id}"
            identity = str(image.id)
            if identity in seen:
                raise DataError(f"two images have the id {identity}", where=where)
            seen.add(identity)
            yield from self._of_image(image, annotations.pop(identity, []), where)
        for identity, rows in annotations.items():
            for row in rows:
                self.problems.add("annotation_without_image", f"{self.path.name}: annotation {row.id}", identity)

    def _of_image(self, image: ImageRow, rows: Sequence[AnnotationRow], where: str) -> Iterator[RawRecord]:
        if not image.file_name.strip():
            raise DataError("file_name is empty", where=where)
        unit = self._unit(image, rows)
        if unit == "annotation":
            yield from self._of_annotations(image, rows)
        elif image.caption is None:
            self.problems.add("image_without_caption", where)
        elif not rows:
            self.problems.add("caption_without_box", where, image.caption)
        elif unit == "caption" or any(row.says_no_target(where) for row in rows):
            yield from self._record(image, str(image.id), image.caption, rows, where)
        else:
            spans = self._spans(image.caption, rows, where, are_phrases=self._is_flickr(image))
            for (begin, end), meant in sorted(spans.items()):
                text = image.caption[begin:end]
                yield from self._record(image, f"{image.id}/{begin}-{end}", text, meant, where)

    def _of_annotations(self, image: ImageRow, rows: Sequence[AnnotationRow]) -> Iterator[RawRecord]:
        for row in rows:
            where = f"{self.path.name}: annotation {row.id}"
            texts = row.texts()
            if not texts:
                self.problems.add("annotation_without_expression", where)
                continue
            used, *others = texts
            if others:
                self.problems.add("several_expression_keys", where, f"{used} is used, not {', '.join(others)}")
            yield from self._record(image, str(row.id), texts[used], [row], where)

    def _record(
        self, image: ImageRow, identity: str, text: str | list[str], rows: Sequence[AnnotationRow], where: str
    ) -> Iterator[RawRecord]:
        """The record, unless one of its boxes is missing."""
        texts = [(identity, text)] if isinstance(text, str) else [(f"{identity}/{k}", t) for k, t in enumerate(text)]
        picture = self._picture(image)
        no_target = [row for row in rows if row.says_no_target(where)]
        if no_target and len(no_target) < len(rows):
            raise DataError("the caption has a target and an annotation that says it has none", where=where)
        regions = [] if no_target else [self._region(image, picture, row) for row in rows]
        kept = [region for region in regions if region is not None]
        if len(kept) == len(regions):
            expressions = tuple(RawExpression(*one) for one in texts)
            yield RawRecord(self.split, picture, expressions, tuple(kept), where)

    def _region(self, image: ImageRow, picture: RawImage, row: AnnotationRow) -> RawRegion | None:
        where = f"{self.path.name}: annotation {row.id}"
        box = row.box_xyxy(where)
        if box is not None and self._is_one_based(image):
            box = (box[0] - 1, box[1] - 1, box[2], box[3])
        mask = row.mask
        source_id = None
        number = _number(row.original_id)
        if number is not None and picture.key.startswith("coco:"):
            source_id = f"coco:{number}"
            mask = mask or self._joined_mask(number, picture, where)
        if box is None and mask is None:
            self.problems.add("annotation_without_box", where)
            return None
        return RawRegion(box, mask, source_id)

    def _joined_mask(self, annotation_id: int, picture: RawImage, where: str) -> bytes | None:
        if self.instances is None:
            return None
        found = self.instances.annotations.get(annotation_id)
        if found is None or not found.segmentation:
            self.problems.add("mask_missing", where, f"coco:{annotation_id}")
            return None
        if picture.key != f"coco:{found.image_id}":
            raise DataError(
                f"COCO's annotation {annotation_id} is of image {found.image_id}, not of {picture.key}",
                where=where,
                hint="give the instances file that the expressions were made from",
            )
        return found.segmentation

    def _spans(
        self, caption: str, rows: Sequence[AnnotationRow], where: str, *, are_phrases: bool
    ) -> dict[Span, list[AnnotationRow]]:
        """Phrase -> the annotations that it means; unless spans are whole phrases, neighbouring ones are joined."""
        meant: dict[Span, list[AnnotationRow]] = {}
        for row in rows:
            given = [(begin, end) for begin, end in row.tokens_positive or ()]
            inside = [(begin, end) for begin, end in given if 0 <= begin < end <= len(caption)]
            for _ in range(len(given) - len(inside)):
                self.problems.add("span_outside_caption", where, f"annotation {row.id}: {given}")
            if not given:
                self.problems.add("annotation_without_phrase", where, f"annotation {row.id}")
            for span in dict.fromkeys(inside) if are_phrases else join_words(inside, caption):
                meant.setdefault(span, []).append(row)
        return meant

    def _picture(self, image: ImageRow) -> RawImage:
        if self._is_flickr(image):
            return flickr_image(image.file_name, width=image.width, height=image.height)
        number = _number(image.original_id) if image.is_of_coco else None
        if number is not None and coco_id(image.file_name) is None:
            return coco_image(number, width=image.width, height=image.height)
        return named_image(image.file_name, dataset=self.dataset, width=image.width, height=image.height)

    def _unit(self, image: ImageRow, rows: Sequence[AnnotationRow]) -> Unit:
        if self.settings.unit != "auto":
            return self.settings.unit
        if image.caption is None or any(row.texts() for row in rows):
            return "annotation"
        return "phrase" if any(family in self._family(image) for family in _PHRASE_FAMILIES) else "caption"

    def _is_one_based(self, image: ImageRow) -> bool:
        if self.settings.flickr_boxes == "auto":
            return self._is_flickr(image)
        return self.settings.flickr_boxes == "correct"

    def _is_flickr(self, image: ImageRow) -> bool:
        return "flickr" in self._family(image)

    def _family(self, image: ImageRow) -> str:
        """The data set's name; without one, the file's if it is one that MDETR or GLIP published."""
        name = stem(self.path)
        return (image.dataset_name or (name if name.startswith(_PUBLISHED) else "")).lower()


def _number(value: int | str | None) -> int | None:
    return int(value) if value is not None and str(value).isdecimal() else None


SOURCE = Source(
    description="COCO-style JSON: MDETR's and GLIP's grounding files, or COCO annotations with expressions",
    read=read_coco,
    settings=CocoSettings,
    files={"*": (), INSTANCES: ("instances.json", "instances_train2014.json")},
    sniff=sniff_coco,
    optional=frozenset({INSTANCES}),
)
