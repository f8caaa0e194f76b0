"""COCO-style JSON: the grounding files of MDETR and GLIP, and plain COCO whose annotations carry expressions.

In the files of MDETR and GLIP an image row is an image with one caption, and its annotations are the caption's target.
In referring-expression files (`finetune_refcoco*.json`) the caption is the expression; in Flickr30k and mixed files it
is a sentence whose phrases (`tokens_positive`, ranges of characters) are the expressions. In plain COCO each annotation
is a target and has its own expressions, under a key of `EXPRESSION_KEYS`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import msgspec

from refcli.config.schema import Settings
from refcli.data.reading.streams import stem, text_start
from refcli.data.sources.coco.instances import (
    Instances,
    category_names,
    is_coco_url,
    read_coco_lists,
    read_instances,
)
from refcli.data.sources.coco.rows import (
    ANNOTATION_KEYS,
    EXPRESSION_KEYS,
    IMAGE_KEYS,
    SENTENCE_KEYS,
    AnnotationRow,
    ImageRow,
    Span,
    have_several_phrases,
    join_words,
    target_of,
)
from refcli.data.sources.coco.settings import CocoSettings, Unit
from refcli.data.sources.image_names import ImageOrigin, coco_id, coco_image, named_flickr_image, named_image
from refcli.data.sources.known_keys import KeyLog, WholeFileError
from refcli.data.sources.labels import TEMPLATE, labelled_records
from refcli.data.sources.record import CATEGORY, Problems, RawExpression, RawImage, RawRecord, RawRegion, Source
from refcli.data.sources.rows import (
    UNREADABLE_VALUE,
    Id,
    Rejections,
    comparable_id,
    decode_row,
    valid_side,
    whole_number,
)
from refcli.errors import DataError

INSTANCES = "instances"
_PUBLISHED = "final_"
"""Prefix of the names of MDETR's and GLIP's files of several kinds."""
_PHRASE_FAMILIES = ("flickr", "mixed", "gqa")
_NEEDED = ("empty", "no_target", "exist", "negative_type", "tokens_positive")
"""Fields of an annotation that must be readable if they are there."""
_FIRST_KEY = re.compile(rb'\{\s*"(?:info|licenses|type|images|annotations|categories)"\s*:')
_LIST_OF_ROWS = re.compile(rb'"(?:images|annotations|categories)"\s*:\s*\[')


def read_coco(
    files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
) -> Iterator[RawRecord]:
    """Yield one record per caption, per phrase with all its boxes, per annotation, per category, or per image with all
    its labelled objects; see `Reader`.

    An annotation with `iscrowd` 1 is a target like any other; as part of a category it is reported too.

    Args:
        files: split -> file; optionally `instances`, COCO's own annotations, for the masks of boxes that name their
            annotation by `original_id`.
        settings: a `CocoSettings`.
        dataset: prefix of the keys of images that are neither COCO's nor Flickr30k's.
        problems: collects omitted records: `caption_without_box` (no annotation at all, which differs from one that
            marks "no target"), `annotation_without_box` (with its record), `annotation_without_image`,
            `annotation_without_expression`, `annotation_without_phrase`, `span_outside_caption`,
            `image_without_caption`, `broken_row` and `target_of_broken_row` (a caption or category with a box in a
            broken row). Reported and kept: `mask_missing`, `several_expression_keys`, `unreadable_value`,
            `unused_key`, `caption_read_as_phrases`.

    Raises:
        DataError: the file contradicts itself (an id twice, a target beside "no target", a mask of another image), or
            nothing in it can be used.
    """
    assert isinstance(settings, CocoSettings)
    paths = {split: path for split, path in files.items() if split != INSTANCES}
    parsed: Iterable[tuple[str, _File]] = ((split, _read_file(path, problems)) for split, path in paths.items())
    instances = None
    if INSTANCES in files:
        parsed = list(parsed)
        named = (whole_number(row.original_id) for _, file in parsed for row in file.annotations)
        wanted = {number for number in named if number is not None}
        instances = read_instances(files[INSTANCES], annotation_ids=wanted, problems=problems)
    for split, file in parsed:
        reading = _Reading(split, paths[split], dataset, settings, instances, problems, file)
        seen: set[str] = set()
        has_records = False
        for record in reading.records():
            has_records = True
            for expression in record.expressions:
                if expression.id in seen:
                    raise DataError(f"the id {expression.id} occurs twice", where=record.where)
                seen.add(expression.id)
            yield record
        if not (seen or (settings.expressions == TEMPLATE and has_records)):
            if settings.expressions != "given" or file.has_texts or not file.annotations:
                file.rejected.raise_first()
            raise _no_expressions(paths[split], file, settings, problems)


def sniff_coco(path: Path) -> bool:
    """Whether a file starts as a COCO file does, with or without expressions."""
    start = text_start(path)
    if b'"original_dataset"' in start:  # aRefCOCO
        return False
    return _FIRST_KEY.match(start) is not None and _LIST_OF_ROWS.search(start) is not None


@dataclass(frozen=True)
class _File:
    """The usable rows of a file."""

    images: list[ImageRow]
    annotations: list[AnnotationRow]
    category_names: dict[Id, str]
    broken_targets: Mapping[Id, frozenset[Id | None]]
    """Image -> the categories of its annotations that cannot be used; None stands for an unknown category."""
    rejected: Rejections

    @property
    def has_texts(self) -> bool:
        """Whether the file has any text that could be an expression."""
        return any(image.caption for image in self.images) or any(row.texts() for row in self.annotations)


def _read_file(path: Path, problems: Problems) -> _File:
    lists = read_coco_lists(path, problems)
    rejected = Rejections(problems)
    keys = KeyLog(path.name, problems)
    images: list[ImageRow] = []
    for index, raw in enumerate(lists.images):
        where = f"{path.name}: images[{index}]"
        try:
            images.append(decode_row(raw, ImageRow, where=where, problems=problems, needed=(), keys=(IMAGE_KEYS, keys)))
        except DataError as error:
            rejected.add(error, where)
    annotations: list[AnnotationRow] = []
    broken: defaultdict[Id, set[Id | None]] = defaultdict(set)
    for index, raw in enumerate(lists.annotations):
        where = f"{path.name}: annotations[{index}]"
        try:
            row = decode_row(
                raw,
                AnnotationRow,
                where=where,
                problems=problems,
                needed=_NEEDED,
                keys=(ANNOTATION_KEYS, keys),
            )
            row.check()
            if row.has_sentences:
                _check_sentences(raw, keys, where)
            annotations.append(row)
        except DataError as error:
            rejected.add(error, where)
            image_id, category_id = target_of(raw)
            if image_id is not None:
                broken[image_id].add(category_id)
    keys.finish()
    return _File(
        images,
        annotations,
        category_names(lists.categories),
        {image: frozenset(categories) for image, categories in broken.items()},
        rejected,
    )


def _check_sentences(raw: msgspec.Raw, keys: KeyLog, where: str) -> None:
    """Compare the keys of an annotation's sentences with the known ones.

    Raises:
        MeaningError: see `KeyLog.check`.
    """
    row = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    for key in EXPRESSION_KEYS:
        value = msgspec.json.decode(row[key]) if key in row else None
        for number, part in enumerate(value if isinstance(value, list) else ()):
            if isinstance(part, dict):
                keys.check(SENTENCE_KEYS, part, f"{where}, {key}[{number}]")


def _no_expressions(path: Path, file: _File, settings: CocoSettings, problems: Problems) -> DataError:
    """The error for a file without a usable expression."""
    if settings.expressions != "given":
        return DataError(
            "no annotation has a category with a name",
            where=str(path),
            hint="check the list of categories",
        )
    unreadable = [place for place in problems.places.get(UNREADABLE_VALUE, ()) if place.startswith(f"{path.name}: ")]
    ways = [f"the first value that cannot be read: {place}" for place in unreadable[:1]]
    ways += ["image rows need a caption, or annotations one of: " + ", ".join(EXPRESSION_KEYS)]
    names = [name for name in file.category_names.values() if name]
    if file.annotations and names:
        ways.append(
            f"--expressions category takes the names of its {len(names)} categories ({', '.join(names[:3])}, ...) as "
            "expressions; each refers to all objects of that category in an image; --expressions template writes "
            "expressions from categories, positions, sizes and colours"
        )
    return DataError("there is no expression with a target in it", where=str(path), hint="\n".join(ways))


@dataclass(frozen=True)
class _Reading:
    """The state of one file while it is read."""

    split: str
    path: Path
    dataset: str
    settings: CocoSettings
    instances: Instances | None
    problems: Problems
    file: _File

    def records(self) -> Iterator[RawRecord]:
        annotations: defaultdict[Id, list[AnnotationRow]] = defaultdict(list)
        for annotation in self.file.annotations:
            annotations[comparable_id(annotation.image_id)].append(annotation)
        seen: set[Id] = set()
        for image in self.file.images:
            where = f"{self.path.name}: image {image.id}"
            identity = comparable_id(image.id)
            if identity in seen:
                raise DataError(f"two images have the id {identity}", where=where)
            seen.add(identity)
            rows = annotations.pop(identity, [])
            try:
                raw_image = self._raw_image(image, where)
            except DataError as error:
                if rows or image.caption is not None:
                    self.file.rejected.add(error, where)
                continue
            yield from self._records_of_image(image, raw_image, rows, where)
        for identity, rows in annotations.items():
            for row in rows:
                self.problems.add("annotation_without_image", f"{self.path.name}: annotation {row.id}", f"{identity}")

    def _records_of_image(
        self, image: ImageRow, raw_image: RawImage, rows: Sequence[AnnotationRow], where: str
    ) -> Iterator[RawRecord]:
        if self.settings.expressions == CATEGORY:
            yield from self._records_of_categories(image, raw_image, rows, where)
            return
        if self.settings.expressions == TEMPLATE:
            yield from self._record_of_labels(image, raw_image, rows, where)
            return
        unit = self._unit(image, rows)
        if unit == "annotation":
            yield from self._records_of_annotations(image, raw_image, rows)
        elif image.caption is None:
            self.problems.add("image_without_caption", where)
        elif comparable_id(image.id) in self.file.broken_targets:
            self.problems.add("target_of_broken_row", where, image.caption)
        elif not rows:
            self.problems.add("caption_without_box", where, image.caption)
        elif unit == "caption" or any(row.marks_no_target(where) for row in rows):
            yield from self._record(image, raw_image, [(str(image.id), image.caption)], rows, where)
        else:
            if self.settings.unit == "auto" and not self._is_of_phrases(image):
                self.problems.add("caption_read_as_phrases", where, image.caption)
            spans = self._spans(image.caption, rows, where, are_phrases=self._is_flickr(image))
            for (begin, end), targets in sorted(spans.items()):
                text = image.caption[begin:end]
                yield from self._record(image, raw_image, [(f"{image.id}/{begin}-{end}", text)], targets, where)

    def _records_of_annotations(
        self, image: ImageRow, raw_image: RawImage, rows: Sequence[AnnotationRow]
    ) -> Iterator[RawRecord]:
        for row in rows:
            where = f"{self.path.name}: annotation {row.id}"
            texts = row.texts()
            if not texts:
                self.problems.add("annotation_without_expression", where)
                continue
            used, *others = texts
            if others:
                self.problems.add("several_expression_keys", where, f"{used} is used, not {', '.join(others)}")
            named = [(f"{row.id}/{k}", text, exists) for k, (text, exists) in enumerate(texts[used])]
            if present := [(identity, text) for identity, text, exists in named if exists]:
                yield from self._record(image, raw_image, present, [row], where)
            if absent := [RawExpression(identity, text) for identity, text, exists in named if not exists]:
                yield RawRecord(self.split, raw_image, tuple(absent), (), where, self._kind([row]))

    def _records_of_categories(
        self, image: ImageRow, raw_image: RawImage, rows: Sequence[AnnotationRow], where: str
    ) -> Iterator[RawRecord]:
        """One record per category of an image, with all its objects."""
        broken = self.file.broken_targets.get(comparable_id(image.id), frozenset())
        members: dict[Id, list[AnnotationRow]] = {}
        for row in rows:
            if self._category_name(row) and row.category_id is not None:
                members.setdefault(comparable_id(row.category_id), []).append(row)
        for category, targets in members.items():
            name = self.file.category_names[category]
            if category in broken or None in broken:
                self.problems.add("target_of_broken_row", where, name)
            else:
                if any(row.iscrowd == 1 for row in targets):
                    self.problems.add("crowd_region", where, name)
                yield from self._record(
                    image, raw_image, [(f"{image.id}/{category}", name)], targets, where, kind=CATEGORY
                )

    def _record_of_labels(
        self, image: ImageRow, raw_image: RawImage, rows: Sequence[AnnotationRow], where: str
    ) -> Iterator[RawRecord]:
        """The record of an image with all its objects, unless one of them cannot be read."""
        if comparable_id(image.id) in self.file.broken_targets:
            self.problems.add("target_of_broken_row", where, "an object of the image is unknown")
            return
        objects = []
        try:
            for row in (row for row in rows if not row.marks_no_target(where)):
                region = self._region(image, raw_image, row)
                if region is None:
                    return
                objects.append(replace(region, category=self._category_name(row) or None, is_crowd=row.iscrowd == 1))
        except DataError as error:
            self.file.rejected.add(error, where)
            return
        yield from labelled_records(
            raw_image, objects, self.settings, split=self.split, image_id=str(image.id), where=where
        )

    def _category_name(self, row: AnnotationRow) -> str:
        """The name of an annotation's category; empty, and reported, if it has none."""
        category = None if row.category_id is None else comparable_id(row.category_id)
        name = "" if category is None else self.file.category_names.get(category, "")
        if not name.strip():
            self.problems.add("annotation_without_category", f"{self.path.name}: annotation {row.id}", f"{category}")
        return name.strip()

    def _record(
        self,
        image: ImageRow,
        raw_image: RawImage,
        texts: Sequence[tuple[str, str]],
        rows: Sequence[AnnotationRow],
        where: str,
        *,
        kind: str | None = None,
    ) -> Iterator[RawRecord]:
        """The record, unless one of its boxes is missing or it contradicts itself."""
        try:
            no_target = [row for row in rows if row.marks_no_target(where)]
            if no_target and len(no_target) < len(rows):
                raise DataError("the caption has a target and an annotation that marks no target", where=where)
            regions = [] if no_target else [self._region(image, raw_image, row) for row in rows]
        except DataError as error:
            self.file.rejected.add(error, where)
            return
        kept = [region for region in regions if region is not None]
        if len(kept) == len(regions):
            expressions = tuple(RawExpression(*one) for one in texts)
            yield RawRecord(self.split, raw_image, expressions, tuple(kept), where, kind or self._kind(rows))

    def _kind(self, rows: Sequence[AnnotationRow]) -> str | None:
        """The kind that annotations of one expression state, if the settings ask for it."""
        level = next((row.level for row in rows if row.level is not None), None)
        return f"level_{level}" if self.settings.kind == "level" and level is not None else None

    def _region(self, image: ImageRow, raw_image: RawImage, row: AnnotationRow) -> RawRegion | None:
        where = f"{self.path.name}: annotation {row.id}"
        box = row.box_xyxy(where)
        if box is not None and self._is_one_based(image):
            box = (box[0] - 1, box[1] - 1, box[2], box[3])
        mask = row.mask
        source_id = None
        number = whole_number(row.original_id)
        if number is not None and raw_image.key.startswith("coco:"):
            source_id = f"coco:{number}"
            mask = mask or self._joined_mask(number, raw_image, where)
        if box is None and mask is None:
            self.problems.add("annotation_without_box", where)
            return None
        return RawRegion(box, mask, source_id)

    def _joined_mask(self, annotation_id: int, raw_image: RawImage, where: str) -> bytes | None:
        if self.instances is None:
            return None
        found = self.instances.annotations.get(annotation_id)
        if found is None or not found.segmentation:
            self.problems.add("mask_missing", where, f"coco:{annotation_id}")
            return None
        if raw_image.key != f"coco:{found.image_id}":
            raise WholeFileError(
                f"COCO's annotation {annotation_id} is of image {found.image_id}, not of {raw_image.key}",
                where=where,
                hint="give the instances file that the expressions were written for",
            )
        return found.segmentation

    def _spans(
        self, caption: str, rows: Sequence[AnnotationRow], where: str, *, are_phrases: bool
    ) -> dict[Span, list[AnnotationRow]]:
        """Phrase -> its annotations; unless spans are whole phrases, neighbouring spans are joined."""
        spans: dict[Span, list[AnnotationRow]] = {}
        for row in rows:
            given = row.spans
            inside = [(begin, end) for begin, end in given if 0 <= begin < end <= len(caption)]
            for _ in range(len(given) - len(inside)):
                self.problems.add("span_outside_caption", where, f"annotation {row.id}: {given}")
            if not given:
                self.problems.add("annotation_without_phrase", where, f"annotation {row.id}")
            for span in dict.fromkeys(inside) if are_phrases else join_words(inside, caption):
                spans.setdefault(span, []).append(row)
        return spans

    def _raw_image(self, image: ImageRow, where: str) -> RawImage:
        width, height = valid_side(image.width), valid_side(image.height)
        own = self.settings.images == "own"
        number = whole_number(image.original_id) if image.is_of_coco and not own else None
        if number is None and not own and is_coco_url(image.coco_url, image.id):
            number = whole_number(image.id)
        name = image.file_name
        if number is not None and (name is None or (name and coco_id(name) is None)):
            return coco_image(number, width=width, height=height)
        if name is None or not name.strip():
            raise DataError("file_name is empty", where=where)
        if self._is_flickr(image):
            return named_flickr_image(name, width=width, height=height)
        return named_image(name, dataset=self.dataset, width=width, height=height, origin=self._origin(image))

    def _origin(self, image: ImageRow) -> ImageOrigin:
        if self.settings.images == "auto" and image.is_of_coco:
            return "coco"
        return self.settings.images

    def _unit(self, image: ImageRow, rows: Sequence[AnnotationRow]) -> Unit:
        if self.settings.unit != "auto":
            return self.settings.unit
        if image.caption is None or any(row.texts() for row in rows):
            return "annotation"
        if self._is_of_phrases(image):
            return "phrase"
        is_divided = not self._is_referring(image) and any(row.spans for row in rows) and self._has_phrases
        return "phrase" if is_divided else "caption"

    def _is_of_phrases(self, image: ImageRow) -> bool:
        return any(family in self._family(image) for family in _PHRASE_FAMILIES)

    def _is_referring(self, image: ImageRow) -> bool:
        return "refcoco" in self._family(image)

    @cached_property
    def _has_phrases(self) -> bool:
        """Whether some caption of the file has several phrases; the captions with one phrase are then divided too."""
        images = (image for image in self.file.images if not self._is_referring(image))
        return have_several_phrases(images, self.file.annotations)

    def _is_one_based(self, image: ImageRow) -> bool:
        if self.settings.flickr_boxes == "auto":
            return self._is_flickr(image)
        return self.settings.flickr_boxes == "correct"

    def _is_flickr(self, image: ImageRow) -> bool:
        return "flickr" in self._family(image)

    def _family(self, image: ImageRow) -> str:
        """The data set's name; without one, the file name if MDETR or GLIP published it."""
        name = stem(self.path)
        return (image.dataset_name or (name if name.startswith(_PUBLISHED) else "")).lower()


SOURCE = Source(
    description="COCO-style JSON: MDETR's and GLIP's grounding files, or COCO annotations with expressions",
    read=read_coco,
    settings=CocoSettings,
    files={"*": (), INSTANCES: ("instances.json", "instances_train2014.json")},
    sniff=sniff_coco,
    optional=frozenset({INSTANCES}),
)
