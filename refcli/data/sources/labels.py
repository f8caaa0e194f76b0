"""Labelled boxes as records: class names as the expressions, or images whose expressions are still to be written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import Field

from refcli.config.schema import Settings
from refcli.data.sources.record import CATEGORY, RawExpression, RawImage, RawRecord, RawRegion


class LabelSettings(Settings):
    """Options of every source of labelled boxes."""

    expressions: Literal["given", "category", "template"] = "given"
    """Where the expressions come from. `given`: the texts in the file; `category`: the names of classes, each of which
    refers to all its objects in an image; `template`: refcli writes them from classes, positions, sizes and colours."""
    exhaustive: bool = True
    """Whether every object of the classes is labelled. If not, `template` writes no expression that an unlabelled
    object could make wrong: no counts, no "all", no "no target"."""
    seed: int = Field(0, ge=0)
    """Of `template`: another seed gives other expressions."""
    expressions_per_image: int = Field(6, ge=1, le=100)
    """Of `template`: the largest number of expressions about one image."""


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
        image_id: the image's id in the file; the beginning of the ids of its expressions.
        where: file and record, for messages.
    """
    if settings.expressions == "template":
        yield RawRecord(split, image, (), tuple(objects), where, needs_expressions=True)
        return
    members: dict[str, list[RawRegion]] = {}
    for one in objects:
        members.setdefault(one.category or "", []).append(one)
    kind = CATEGORY if settings.expressions == "category" else None
    for number, (category, targets) in enumerate(members.items()):
        expression = RawExpression(f"{image_id}/{number}", category)
        yield RawRecord(split, image, (expression,), tuple(targets), where, kind)
