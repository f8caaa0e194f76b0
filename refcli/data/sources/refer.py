"""The REFER layout of RefCOCO, RefCOCO+, RefCOCOg and refclef: `refs(<split_by>).p` beside `instances.json`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from refcli.config.schema import Settings
from refcli.data.sources.coco_instances import (
    CocoAnnotation,
    CocoImage,
    Instances,
    coco_image,
    coco_region,
    read_instances,
)
from refcli.data.sources.picture_names import coco_id, own_image
from refcli.data.sources.record import Problems, RawImage, RawRecord, RawRegion, Source
from refcli.data.sources.referit import saiapr_image
from refcli.data.sources.refs_file import Ref, TextField, read_refs, sniff_refs
from refcli.data.sources.rows import Id, number_of
from refcli.errors import DataError

INSTANCES_NAMES = ("instances.json", "instances.json.gz", "instances_train2014.json", "instances_train2014.json.gz")
SPLIT_AUTHORS = ("unc", "umd", "google", "berkeley")
_ReferredAnnotations = Callable[[Ref], tuple[Id, ...]]


class ReferSettings(Settings):
    """Choices of the REFER reader."""

    text: TextField = "sent"
    """`sent`: the cleaned sentence, which the literature uses; `raw`: as it was typed."""
    images: Literal["auto", "coco", "saiapr"] = "auto"
    """What the image ids number: COCO's photographs or SAIAPR's (refclef). `auto`: COCO's where `instances.json` has
    the id in the name COCO_train2014_<id>.jpg or in COCO's own address, else files are looked for by their names."""


def read_refer(
    files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
) -> Iterator[RawRecord]:
    """Yield one record per ref and split it is in; see `Reader`.

    Args:
        files: `refs` and `instances`; the latter may be COCO's own file for the whole of train2014.
        settings: a `ReferSettings`.
        dataset: for images and annotations that are not COCO's.
        problems: see `referred_records`.
    """
    assert isinstance(settings, ReferSettings)
    return referred_records(files, settings, _the_annotation, dataset=dataset, problems=problems)


def referred_records(
    files: Mapping[str, Path],
    settings: ReferSettings,
    annotations_of: _ReferredAnnotations,
    *,
    dataset: str,
    problems: Problems,
) -> Iterator[RawRecord]:
    """Join refs with their annotations and images.

    Args:
        files: `refs` and `instances`.
        settings: which text, whose photographs.
        annotations_of: the ids of the annotations that a ref is about, none if it is about nothing.
        dataset: for images and annotations that are not COCO's.
        problems: the refs that are left out: `ref_without_sentences`, `unknown_annotation`, `unknown_image` (not in
            `instances`), `unusable_image_name`; and `crowd_region`, a group under one mask, which is kept. Also those
            of `read_refs` and `read_instances`.

    Raises:
        DataError: a ref and its annotation name different images, or the two files have nothing in common.
    """
    refs = read_refs(files["refs"], text=settings.text, problems=problems)
    referred = [annotations_of(ref) if ref.expressions else () for ref in refs]
    instances = read_instances(
        files["instances"],
        image_ids={ref.image_id for ref in refs},
        annotation_ids={one for ann_ids in referred for one in ann_ids},
        problems=problems,
    )
    if any(referred) and not instances.annotations:
        raise DataError(
            f"it has none of the annotations that {files['refs'].name} refers to",
            where=str(files["instances"]),
            hint="take the instances.json of the same folder, or COCO's instances_train2014.json",
        )
    for ref, ann_ids in zip(refs, referred, strict=True):
        if not ref.expressions and not ref.absent:
            problems.add("ref_without_sentences", ref.where)
            continue
        told = instances.images.get(ref.image_id)
        if told is None:
            texts = len(ref.expressions) + len(ref.absent)
            problems.add("unknown_image", ref.where, f"image {ref.image_id}, {texts} expressions")
            continue
        try:
            image = _image(told, instances, settings, dataset, where=f"{files['instances'].name}: image {told.id}")
        except DataError as error:
            problems.add("unusable_image_name", ref.where, f"{error.where}: {error.message}")
            continue
        annotations = _annotations(ref, ann_ids, instances, problems) if ref.expressions else None
        for split in ref.splits:
            if annotations is not None:
                regions = _regions(annotations, image, dataset)
                yield RawRecord(split, image, ref.expressions, regions, ref.where)
            if ref.absent:
                yield RawRecord(split, image, ref.absent, (), ref.where)


def sniff_refer(path: Path) -> bool:
    """Whether a file is a list of refs with one annotation each."""
    return sniff_refs(path) == "one"


def refs_names(stem: str) -> tuple[str, ...]:
    """Names that a refs file goes by: "refs(unc).p", "refs_unc.json.gz" and so on for the stem "refs"."""
    return tuple(
        f"{stem}{form.format(author)}{suffix}"
        for author in SPLIT_AUTHORS
        for form in ("({})", "_{}")
        for suffix in (".p", ".json", ".p.gz", ".json.gz")
    )


def _the_annotation(ref: Ref) -> tuple[Id, ...]:
    if ref.has_list:
        raise DataError(
            "the ref has a list of annotations, as in gRefCOCO", where=ref.where, hint="read it with --format grefcoco"
        )
    return ref.ann_ids


def _annotations(
    ref: Ref, ann_ids: tuple[Id, ...], instances: Instances, problems: Problems
) -> list[CocoAnnotation] | None:
    """The annotations of a ref; None if one of them is not known."""
    annotations = []
    for ann_id in ann_ids:
        annotation = instances.annotations.get(ann_id)
        if annotation is None:
            problems.add("unknown_annotation", ref.where, f"annotation {ann_id}, {len(ref.expressions)} expressions")
            return None
        if annotation.image_id != ref.image_id:
            raise DataError(
                f"the ref is about image {ref.image_id}, its annotation {ann_id} about image {annotation.image_id}",
                where=ref.where,
                hint="the refs file and instances.json are not of the same release",
            )
        annotations.append(annotation)
    for annotation in annotations:
        if annotation.iscrowd == 1:
            problems.add("crowd_region", ref.where, f"annotation {annotation.id}")
    return annotations


def _regions(annotations: list[CocoAnnotation], image: RawImage, dataset: str) -> tuple[RawRegion, ...]:
    family = "coco" if image.key.startswith("coco:") else dataset
    return tuple(coco_region(annotation, family=family) for annotation in annotations)


def _image(told: CocoImage, instances: Instances, settings: ReferSettings, dataset: str, *, where: str) -> RawImage:
    number = number_of(told.id)
    if settings.images != "auto" and number is None:
        raise DataError(f"the id {told.id!r} is not the number of a photograph", where=where)
    if number is not None and (
        settings.images == "coco"
        or (settings.images == "auto" and (told.id in instances.of_coco or number == coco_id(told.file_name)))
    ):
        return coco_image(number, width=told.width, height=told.height)
    if settings.images == "saiapr" and number is not None:
        return saiapr_image(number, width=told.width, height=told.height)
    if not told.file_name.strip():
        raise DataError(
            "the image has no file_name",
            where=where,
            hint="the setting images: coco (or saiapr) finds photographs by their ids",
        )
    return own_image(told.file_name, dataset=dataset, width=told.width, height=told.height)


SOURCE = Source(
    description="REFER's refs(<split_by>).p or .json with instances.json: RefCOCO, RefCOCO+, RefCOCOg, refclef",
    read=read_refer,
    settings=ReferSettings,
    files={"refs": refs_names("refs"), "instances": INSTANCES_NAMES},
    sniff=sniff_refer,
)
