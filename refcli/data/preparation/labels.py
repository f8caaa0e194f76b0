"""Expressions that refcli writes about labelled images: a survey of all labels, and the examples of one image."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from refcli.contracts.example import Example, Region
from refcli.data.sources.labels import LabelSettings
from refcli.data.sources.record import Problems, RawRecord
from refcli.data.templates.graph import LabelGraph
from refcli.data.templates.names import readable_noun
from refcli.data.templates.objects import labelled_objects
from refcli.data.templates.write import DescribedImage, write_expressions
from refcli.errors import DataError

NO_LABELS = "image_without_labels"
NO_CERTAIN_EXPRESSION = "no_certain_expression"
CLASS_WITHOUT_NOUN = "class_without_noun"


@dataclass(frozen=True)
class LabelSurvey:
    """What only all records show: the classes of each split, and the images that are listed more than once."""

    settings: LabelSettings
    classes: Mapping[str, frozenset[str]]
    """Split -> the nouns of the classes that are labelled in it. A class without a label in a split may be one that was
    not looked for there: no expression of the split is about its absence."""
    repeated: frozenset[tuple[str, str]]
    """Split and key of the images whose labels are spread over several records."""


def survey_labels(
    records: Iterable[RawRecord], settings: LabelSettings, problems: Problems, *, where: str
) -> LabelSurvey:
    """Read all labelled images once.

    Args:
        records: of all splits, also of those that are not prepared, so that every shard gives the same survey.
        settings: of the source.
        problems: collects the classes that no expression can name, `class_without_noun`.
        where: the files, for messages.

    Raises:
        DataError: there are labels, but no class has a name that is an English noun.
    """
    names: defaultdict[str, Counter[str]] = defaultdict(Counter)
    seen: set[int] = set()
    repeated: set[tuple[str, str]] = set()
    for record in records:
        if not record.needs_expressions:
            continue
        names[record.split].update(region.category or "" for region in record.regions)
        image = (record.split, record.image.key)
        if hash(image) in seen:
            repeated.add(image)
        seen.add(hash(image))
    nouns = {name: readable_noun(name) for counts in names.values() for name in counts}
    without = {name: sum(counts[name] for counts in names.values()) for name, noun in nouns.items() if noun is None}
    if nouns and len(without) == len(nouns):
        raise DataError(
            f"no class has a name that is an English noun: {', '.join(map(repr, sorted(without)[:5]))}",
            where=where,
            hint="rename the classes in the file (person, traffic light), or use --expressions category",
        )
    for name, count in sorted(without.items()):
        problems.add(CLASS_WITHOUT_NOUN, where, f"{name!r}, {count:,} objects: no expression is about them")
    classes = {
        split: frozenset(noun for name in counts if (noun := nouns[name]) is not None)
        for split, counts in names.items()
    }
    return LabelSurvey(settings, classes, frozenset(repeated))


class ShownImage(NamedTuple):
    """An image about which expressions are written."""

    path: str
    """Relative to the image root of the data set."""
    width: int
    height: int
    """In pixels; 0: unknown."""
    pixels: UInt8[np.ndarray, "height width 3"] | None
    """RGB, for colours; None: no colour word is used."""


def labelled_examples(
    record: RawRecord,
    shown: ShownImage,
    regions: Sequence[Region],
    dataset: str,
    survey: LabelSurvey,
    problems: Problems,
) -> Iterator[Example]:
    """Write the expressions about one labelled image.

    Args:
        record: the labels.
        shown: the image.
        regions: the checked regions, in the order of the labels.
        dataset: name of the data set.
        survey: of all labels.
        problems: collects images without an expression: `image_of_unknown_size`, `labels_in_several_records` and
            `no_certain_expression`; and all images without labels, which may be missing: `image_without_labels`.
    """
    if not shown.width:
        problems.add("image_of_unknown_size", record.where, "give width and height, or the images with --images")
        return
    if (record.split, record.image.key) in survey.repeated:
        problems.add("labels_in_several_records", record.where, record.image.key)
        return
    objects = labelled_objects(record.regions, regions, shown.pixels)
    identity = record.image.key.removeprefix(f"{dataset}:")
    image = DescribedImage(identity, shown.width, shown.height, objects)
    written = write_expressions(image, survey.classes[record.split], survey.settings)
    if not objects:
        problems.add(NO_LABELS, record.where, "it only gets expressions without a target")
    elif not written:
        problems.add(NO_CERTAIN_EXPRESSION, record.where, _summary(image))
    for number, expression in enumerate(written):
        yield Example(
            id=f"{dataset}/{identity}/{number}",
            dataset=dataset,
            split=record.split,
            image=shown.path,
            image_id=record.image.key,
            width=shown.width,
            height=shown.height,
            expression=expression.text,
            regions=tuple(regions[target] for target in expression.targets),
            kind=expression.kind,
        )


def _summary(image: DescribedImage) -> str:
    graph = LabelGraph(image.objects, image.width, image.height)
    unnamed = sum(item.noun is None for item in image.objects)
    doubtful = graph.doubtful.bit_count() - unnamed
    return f"{len(image.objects)} objects, {doubtful} of them small, cut, doubled or a crowd, {unnamed} without a noun"
