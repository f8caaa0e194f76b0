"""Labelled boxes as records: class names as the expressions, or images whose expressions are still to be written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import msgspec
from pydantic import Field, model_validator

from refcli.config.schema import Settings
from refcli.data.sources.image_names import ImageOrigin
from refcli.data.sources.record import CATEGORY, Problems, RawExpression, RawImage, RawRecord, RawRegion
from refcli.data.sources.rows import Rejections
from refcli.errors import DataError

_LEAST_POINTS = 3

TEMPLATE = "template"
"""The value of `LabelSettings.expressions` for expressions that refcli writes."""
_OF_TEMPLATE = ("exhaustive", "seed", "expressions_per_image")


class LabelSettings(Settings):
    """Options of every source of labelled boxes."""

    expressions: Literal["given", "category", "template"] = "given"
    """Where the expressions come from. `given`: the texts in the file; `category`: the names of classes, each of which
    refers to all its objects in an image; `template`: refcli writes them from classes, positions, sizes and colours."""
    exhaustive: bool = True
    """Whether every object of the classes is labelled. If not, `template` writes no counts, no "all", no order, no
    extreme and no "no target". What remains is true of its target, but an unlabelled object may fit it as well."""
    seed: int = Field(0, ge=0)
    """For `template`: seed of the random choices."""
    expressions_per_image: int = Field(6, ge=1, le=100)
    """For `template`: maximum number of expressions about one image."""

    @model_validator(mode="after")
    def _used(self) -> LabelSettings:
        fields = type(self).model_fields
        changed = [name for name in _OF_TEMPLATE if getattr(self, name) != fields[name].default]
        if changed and self.expressions != TEMPLATE:
            raise ValueError(f"{changed[0]} has no effect without expressions=template")
        return self


class LabelToolSettings(LabelSettings):
    """Options of the files of labelling tools."""

    images: ImageOrigin = "auto"
    """Where the images come from. `auto`: COCO where a file is named COCO_train2014_...; `own`: the data set itself."""


def labelled_records(
    image: RawImage,
    objects: Sequence[RawRegion],
    settings: LabelSettings,
    *,
    split: str,
    image_id: str,
    where: str,
) -> Iterator[RawRecord]:
    """The records of an image with labelled objects, as `settings.expressions` demands.

    `given` and `category`: one record per category, with all its objects, in the order of first appearance; the label
    of a tool that labels expressions is the expression. `template`: one record without expressions
    (`RawRecord.needs_expressions`); also for an image without objects.

    Args:
        image: the image.
        objects: its labelled objects, all with a category.
        settings: of the source.
        split: of the records.
        image_id: the image's id in the file; the beginning of the ids of its expressions, except those of templates,
            which begin with the image's key.
        where: file and record, for messages.
    """
    if settings.expressions == TEMPLATE:
        yield RawRecord(split, image, (), tuple(objects), where, needs_expressions=True)
        return
    members: dict[str, list[RawRegion]] = {}
    for one in objects:
        members.setdefault(one.category or "", []).append(one)
    kind = CATEGORY if settings.expressions == "category" else None
    for number, (category, targets) in enumerate(members.items()):
        expression = RawExpression(f"{image_id}/{number}", category)
        yield RawRecord(split, image, (expression,), tuple(targets), where, kind)


@dataclass
class LabelledImage:
    """An image of a labelling tool, while its objects are collected."""

    image: RawImage
    image_id: str
    split: str
    where: str
    """File and image, for messages."""
    objects: list[tuple[RawRegion, str | None]] = field(default_factory=list)
    """Each with its group, see `records`."""
    broken: set[str | None] = field(default_factory=set)
    """The labels of objects that cannot be used; None stands for an unknown label."""

    def add(
        self,
        parse: Callable[[], RawRegion],
        label: str | None,
        rejected: Rejections,
        where: str,
        *,
        group: str | None = None,
    ) -> None:
        """Add an object, or report it if it cannot be used.

        Args:
            parse: raises DataError if it cannot be used.
            label: its category; None or empty if it has none.
            rejected: collects it if it cannot be used.
            where: file and object, for messages.
            group: of the shapes that the tool states to belong together.
        """
        label = (label or "").strip() or None
        try:
            if label is None:
                raise DataError("it has no label", where=where)
            self.objects.append((replace(parse(), category=label), group))
        except DataError as error:
            rejected.add(error, where)
            self.broken.add(label)

    def records(
        self, settings: LabelSettings, problems: Problems, *, absent: Sequence[str] = ()
    ) -> Iterator[RawRecord]:
        """The records of the image, see `labelled_records`.

        A box and a mask (or polygon) of one label that are alone in their group are one object.

        Args:
            settings: of the source.
            problems: collects what is left out because of a broken object: its category
                (`target_of_broken_object`), or the image if the category is unknown or every object is needed
                (`image_of_broken_object`).
            absent: expressions without a target; only `given` expressions use them.
        """
        if None in self.broken or (self.broken and settings.expressions == "template"):
            problems.add("image_of_broken_object", self.where)
            return
        for label in sorted(filter(None, self.broken)):
            problems.add("target_of_broken_object", self.where, label)
        objects = [one for one in _joined(self.objects) if one.category not in self.broken]
        number = 0
        for record in labelled_records(
            self.image, objects, settings, split=self.split, image_id=self.image_id, where=self.where
        ):
            number += 1
            yield record
        for text in absent if settings.expressions == "given" else ():
            yield RawRecord(self.split, self.image, (RawExpression(f"{self.image_id}/{number}", text),), (), self.where)
            number += 1


def _joined(objects: Sequence[tuple[RawRegion, str | None]]) -> list[RawRegion]:
    """The objects, in the order of their first shapes."""
    groups: defaultdict[tuple[str | None, str | None], list[RawRegion]] = defaultdict(list)
    for number, (one, group) in enumerate(objects):
        groups[(None, str(number)) if group is None else (one.category, group)].append(one)
    joined: list[RawRegion] = []
    for members in groups.values():
        boxes = [one for one in members if one.segmentation is None]
        masks = [one for one in members if one.segmentation is not None]
        if len(boxes) == len(masks) == 1:
            joined.append(replace(boxes[0], segmentation=masks[0].segmentation))
        else:
            joined += members
    return joined


def outlined_region(points: Sequence[tuple[float, float]], where: str) -> RawRegion:
    """The region in a polygon of at least three points in pixels, with the extent of the points as its box.

    Raises:
        DataError: it has fewer points.
    """
    if len(points) < _LEAST_POINTS:
        raise DataError(f"its polygon has {len(points)} points", where=where)
    xs, ys = zip(*points, strict=True)
    flat = [number for point in points for number in point]
    return RawRegion((min(xs), min(ys), max(xs), max(ys)), msgspec.json.encode([flat]))
