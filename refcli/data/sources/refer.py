"""The REFER layout of RefCOCO, RefCOCO+, RefCOCOg and refclef: `refs(<split_by>).p` beside `instances.json`."""

from __future__ import annotations

import re
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
from refcli.data.sources.record import Problems, RawImage, RawRecord, Source
from refcli.data.sources.referit import saiapr_image
from refcli.data.sources.refs_file import Ref, TextField, read_refs, sniff_refs
from refcli.errors import DataError

INSTANCES_NAMES = ("instances.json", "instances.json.gz", "instances_train2014.json", "instances_train2014.json.gz")
SPLIT_AUTHORS = ("unc", "umd", "google", "berkeley")
_COCO_NAME = re.compile(r"(?:COCO_(?:train|val)2014_)?([0-9]{12})\.jpg")
_ReferredAnnotations = Callable[[Ref], tuple[int, ...]]


class ReferSettings(Settings):
    """Choices of the REFER reader."""

    text: TextField = "sent"
    """`sent`: the cleaned sentence, which the literature uses; `raw`: as it was typed."""
    images: Literal["auto", "coco", "saiapr"] = "auto"
    """What the image ids number: COCO's photographs or SAIAPR's (refclef). `auto`: COCO's where `instances.json` names
    the file after the id, else the files are looked for by the names in `instances.json`."""


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
            `instances`); and `crowd_region`, a group under one mask, which is kept.

    Raises:
        DataError: a ref and its annotation name different images, or the two files have nothing in common.
    """
    refs = read_refs(files["refs"], text=settings.text)
    referred = [annotations_of(ref) for ref in refs]
    instances = read_instances(
        files["instances"],
        image_ids={ref.image_id for ref in refs},
        annotation_ids={one for ann_ids in referred for one in ann_ids},
    )
    if any(referred) and not instances.annotations:
        raise DataError(
            f"it has none of the annotations that {files['refs'].name} refers to",
            where=str(files["instances"]),
            hint="take the instances.json of the same folder, or COCO's instances_train2014.json",
        )
    for ref, ann_ids in zip(refs, referred, strict=True):
        if not ref.expressions:
            problems.add("ref_without_sentences", ref.where)
            continue
        annotations = _annotations(ref, ann_ids, instances, problems)
        if annotations is None:
            continue
        told = instances.images.get(ref.image_id)
        if told is None:
            problems.add("unknown_image", ref.where, f"image {ref.image_id}, {len(ref.expressions)} expressions")
            continue
        image = _image(told, settings, dataset, where=f"{files['instances'].name}: image {told.id}")
        family = "coco" if image.key.startswith("coco:") else dataset
        for annotation in annotations:
            if annotation.iscrowd == 1:
                problems.add("crowd_region", ref.where, f"annotation {annotation.id}")
        regions = tuple(coco_region(annotation, family=family) for annotation in annotations)
        for split in ref.splits:
            yield RawRecord(split, image, ref.expressions, regions, ref.where)


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


def _the_annotation(ref: Ref) -> tuple[int, ...]:
    if ref.has_list:
        raise DataError(
            "the ref has a list of annotations, as in gRefCOCO", where=ref.where, hint="read it with --format grefcoco"
        )
    return ref.ann_ids


def _annotations(
    ref: Ref, ann_ids: tuple[int, ...], instances: Instances, problems: Problems
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
    return annotations


def _image(told: CocoImage, settings: ReferSettings, dataset: str, *, where: str) -> RawImage:
    name = told.file_name.replace("\\", "/")
    match = _COCO_NAME.fullmatch(name.rpartition("/")[2])
    if settings.images == "coco" or (settings.images == "auto" and match and int(match[1]) == told.id):
        return coco_image(told.id, width=told.width, height=told.height)
    if settings.images == "saiapr":
        return saiapr_image(told.id, width=told.width, height=told.height)
    if not name:
        raise DataError(
            "the image has no file_name",
            where=where,
            hint="the setting images: coco (or saiapr) finds photographs by their ids",
        )
    return RawImage(f"{dataset}:{name}", (name,), told.width, told.height)


SOURCE = Source(
    description="REFER's refs(<split_by>).p or .json with instances.json: RefCOCO, RefCOCO+, RefCOCOg, refclef",
    read=read_refer,
    settings=ReferSettings,
    files={"refs": refs_names("refs"), "instances": INSTANCES_NAMES},
    sniff=sniff_refer,
)
