"""The reader of `.pth` lists: the meaning of their boxes, images and masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from math import isfinite
from operator import itemgetter
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from refcli.config.schema import Settings
from refcli.data.sources.coco.instances import Instances, read_instances, xywh_to_xyxy
from refcli.data.sources.image_names import coco_id, coco_image, flickr_image, own_image, saiapr_image
from refcli.data.sources.known_keys import KeyLog, KnownKeys, MeaningError, excerpt
from refcli.data.sources.pth.tuples import Box, Family, PthRow, read_rows, sniff_rows
from refcli.data.sources.record import Problems, RawExpression, RawImage, RawRecord, RawRegion, Source
from refcli.data.sources.rows import Id, Rejections, convert_row, valid_side
from refcli.errors import DataError
from refcli.geometry.boxes import BoxXYXY

INSTANCES = "instances"
MIN_BOXES_TO_DECIDE = 50
"""Of this many x, y, width, height boxes, some cannot be corners: width <= x or height <= y (RefCOCO: 3 in 5)."""
BOXES_PER_OUTLIER = 100
"""One box in this many may contradict the others: it is an outlier, reported if it is impossible."""
BOX_TOLERANCE = 0.02
"""Pixels by which a box may differ from that of the annotation it names; both are written with two decimals."""

BoxKind = Literal["xywh", "xyxy"]


class PthSettings(Settings):
    """Options of the `.pth` reader; `auto` decides by the rows of each file."""

    boxes: Literal["auto", "xywh", "xyxy"] = "auto"
    """The form of the four numbers. auto: the usual form of the layout; boxes that contradict it are an error."""
    images: Literal["auto", "coco", "referit", "flickr", "own"] = "auto"
    """The family of the images; `own`: none of the three. auto: COCO where the names have the form of 2014, or are
    numbers of twelve digits in tuples that name COCO annotations or beside an `instances` file."""
    inclusive_boxes: bool = True
    """Whether the far edges of ReferIt's and Flickr30k's boxes name the last pixel; the reader then adds one pixel.
    False takes the numbers as edges, as TransVG and OneRef do: the boxes are one pixel short."""
    first_flickr_pixel: Literal[0, 1] = 0
    """Number of the first column and row in Flickr30k's boxes. The dataset's own parser subtracts the 1 of its XML."""


class _Target(NamedTuple):
    """The image and region of a row."""

    image: RawImage
    region: RawRegion


class _Size(msgspec.Struct):
    height: int | None = None
    width: int | None = None


_SIZE = KnownKeys("tuple", frozenset({"height", "width"}), frozenset({"file_name", "id"}), has_box=True)


def read_pth(files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems) -> Iterator[RawRecord]:
    """Yield one record per run of tuples about the same box, split by split; see `Reader`.

    An expression's id is the position of its tuple, from 0. TransVG's tuples of COCO name the annotation; masks and
    image sizes are looked up by it if there is an `instances` file. OneRef's tuples have masks and sizes; their
    annotation is looked up by its box.

    Args:
        files: a file per split, saved by torch, or the same lists in JSON; optionally `instances`.
        settings: a `PthSettings`.
        dataset: prefix of the keys of images that are not of COCO, ReferIt or Flickr30k.
        problems: collects `broken_row`; reported and kept: `box_kind_assumed` (too few boxes to decide; one per file
            and family), `first_flickr_pixel_may_be_1` (one per file), `unreadable_segmentation`, `annotation_not_found`
            and `box_differs_from_instances` (no mask is joined).

    Raises:
        DataError: no tuple has a known layout, layouts do not belong together, or boxes contradict their form.
    """
    assert isinstance(settings, PthSettings)
    family = None if settings.images == "auto" else settings.images
    rows_by_split = {
        split: read_rows(path, family=family, problems=problems) for split, path in files.items() if split != INSTANCES
    }
    all_rows = (row for rows in rows_by_split.values() for row in rows)
    annotated = LinkedAnnotations.read(files[INSTANCES], all_rows, problems) if INSTANCES in files else None
    for split, rows in rows_by_split.items():
        path = files[split]
        reading = _Reading(path, settings, dataset, annotated, problems, KeyLog(path.name, problems))
        for target, run in groupby(reading.targets(rows), key=itemgetter(0)):
            members = [row for _, row in run]
            yield RawRecord(
                split=split,
                image=target.image,
                expressions=tuple(RawExpression(str(row.index), row.phrase) for row in members),
                regions=(target.region,),
                where=members[0].where,
            )


@dataclass(frozen=True)
class _Reading:
    """The state of one file while it is read."""

    path: Path
    settings: PthSettings
    dataset: str
    annotated: LinkedAnnotations | None
    problems: Problems
    keys: KeyLog

    def targets(self, rows: list[PthRow]) -> Iterator[tuple[_Target, PthRow]]:
        """The target of each row; rows whose keys change their meaning are reported."""
        kinds = self._box_kinds(rows)
        rejected = Rejections(self.problems)
        num_good = 0
        for row in rows:
            try:
                target = self._target(row, kinds[row.family])
            except MeaningError as error:
                rejected.add(error, row.where)
                continue
            num_good += 1
            yield target, row
        self.keys.finish()
        if not num_good:
            rejected.raise_first()

    def _box_kinds(self, rows: list[PthRow]) -> dict[Family, BoxKind]:
        """The form of the boxes of each family in a file, compared with all its boxes."""
        boxes: dict[Family, list[PthRow]] = {}
        for row in rows:
            boxes.setdefault(row.family, []).append(row)
        if "flickr" in boxes:
            self._check_first_pixel(boxes["flickr"])
        return {family: self._box_kind(family, members) for family, members in boxes.items()}

    def _box_kind(self, family: Family, rows: list[PthRow]) -> BoxKind:
        is_inclusive = family in ("referit", "flickr")
        proofs = [row for row in rows if _is_never_xyxy(row.box, is_inclusive)]
        if len(proofs) * BOXES_PER_OUTLIER < len(rows):
            proofs = []
        proof = proofs[0] if proofs else None
        kind = _usual_kind(rows[0]) if self.settings.boxes == "auto" else self.settings.boxes
        if proof is not None and kind == "xyxy":
            raise DataError(
                f"the boxes of {family} are read as corners, but {list(proof.box)} can only be x, y, width, height",
                where=f"{self.path}: tuple {proof.index}",
                hint="if all are, give --set boxes=xywh; otherwise the file contradicts itself",
            )
        if proof is None and self.settings.boxes == "auto" and kind != "xyxy":
            if kind is None or len(rows) >= MIN_BOXES_TO_DECIDE:
                raise DataError(
                    f"all {len(rows)} boxes of {family} could be corners, unlike typical x, y, width, height boxes"
                    if kind
                    else "the boxes may be corners or x, y, width, height",
                    where=str(self.path),
                    hint="check some, then give --set boxes=xyxy or --set boxes=xywh",
                )
            self.problems.add(
                "box_kind_assumed", f"{self.path.name}: {family}", f"{len(rows)} boxes, read as x, y, width, height"
            )
        return kind or "xywh"

    def _check_first_pixel(self, rows: list[PthRow]) -> None:
        before = [row for row in rows if min(row.box[:2]) < self.settings.first_flickr_pixel]
        if len(before) * BOXES_PER_OUTLIER >= len(rows):
            zero = before[0]
            raise DataError(
                f"the box {list(zero.box)} begins before pixel {self.settings.first_flickr_pixel}, the first one",
                where=f"{self.path}: tuple {zero.index}",
                hint="check the setting first_flickr_pixel",
            )
        if (
            self.settings.first_flickr_pixel == 0
            and len(rows) >= MIN_BOXES_TO_DECIDE
            and all(min(row.box[:2]) > 0 for row in rows)
        ):
            self.problems.add(
                "first_flickr_pixel_may_be_1", f"{self.path.name}: flickr", f"none of {len(rows)} boxes begins at 0"
            )

    def _target(self, row: PthRow, kind: BoxKind) -> _Target:
        box = self._edges(row, kind)
        width = height = None
        if isinstance(row.about, dict):
            size = convert_row(
                row.about, _Size, where=row.where, problems=self.problems, needed=(), keys=(_SIZE, self.keys)
            )
            width, height = valid_side(size.width), valid_side(size.height)
        segmentation: bytes | None = None
        has_lost_mask = False
        source_id: str | None = None
        if row.layout == "oneref":
            if row.last and not isinstance(row.last, str):
                segmentation = _segmentation(row, self.problems)
                has_lost_mask = segmentation is None
            if self.annotated is not None and row.family == "coco":
                found = self.annotated.id_by_box(row, box, self.problems)
                source_id = None if found is None else f"coco:{found}"
        elif row.annotation_id is not None:
            source_id = f"coco:{row.annotation_id}"
            if self.annotated is not None:
                width, height, segmentation = self.annotated.size_and_mask(row, row.annotation_id, box, self.problems)
        elif row.referit_region is not None:
            source_id = f"saiapr:{row.referit_region}"
        image = self._image(row, width, height)
        return _Target(image, RawRegion(box, segmentation, source_id, has_lost_mask))

    def _image(self, row: PthRow, width: int | None, height: int | None) -> RawImage:
        needs_coco_name = self.settings.images == "auto" and self.annotated is None and row.layout != "transvg"
        if row.family == "coco" and needs_coco_name and coco_id(row.file_name) is None:
            return own_image(row.file_name, dataset=self.dataset, width=width, height=height)
        if row.number is None:
            return RawImage(f"{self.dataset}:{row.file_name}", (row.file_name,), width, height)
        if row.family == "coco":
            return coco_image(row.number, width=width, height=height)
        if row.family == "referit":
            return saiapr_image(row.number, width=width, height=height)
        return flickr_image(row.number, width=width, height=height)

    def _edges(self, row: PthRow, kind: BoxKind) -> BoxXYXY:
        left, top, right, bottom = map(float, row.box)
        if kind == "xywh":
            right, bottom = left + right, top + bottom
        extra = 1.0 if self.settings.inclusive_boxes and row.family in ("referit", "flickr") else 0.0
        first = float(self.settings.first_flickr_pixel) if row.family == "flickr" else 0.0
        return left - first, top - first, right - first + extra, bottom - first + extra


def _usual_kind(row: PthRow) -> BoxKind | None:
    if row.layout == "mixup":
        return "xywh"
    return {"coco": "xywh", "referit": "xyxy", "flickr": "xyxy", "own": None}[row.family]


def _is_never_xyxy(box: Box, is_inclusive: bool) -> bool:
    """Whether a box has no extent if read as corners, but has one if read as x, y, width, height."""
    first_x, first_y, last_x, last_y = box
    if min(last_x, last_y) < 0 or (min(last_x, last_y) == 0 and not is_inclusive):
        return False
    if is_inclusive:
        return last_x < first_x or last_y < first_y
    return last_x <= first_x or last_y <= first_y


def _segmentation(row: PthRow, problems: Problems) -> bytes | None:
    """The polygons or run lengths of a OneRef tuple as JSON; None if they are not valid."""
    try:
        if isinstance(row.last, dict):
            return msgspec.json.encode(_run_lengths(row.last))
        if isinstance(row.last, list | tuple):
            return msgspec.json.encode([_part(part) for part in row.last])
        raise DataError(f"it is neither polygons nor run lengths but {excerpt(row.last)}")
    except DataError as error:
        reason = error.message
    except (TypeError, ValueError, OverflowError, RecursionError):
        reason = "its size or counts are not numbers"
    problems.add("unreadable_segmentation", row.where, reason)
    return None


def _part(part: object) -> object:
    if isinstance(part, dict):
        return _run_lengths(part)
    if isinstance(part, list | tuple) and all(type(x) in (int, float) and isfinite(x) for x in part):
        return part
    if type(part) in (int, float):
        return part  # a single polygon; the numbers are checked when it is rasterised
    raise DataError(f"a polygon is not a list of numbers but {excerpt(part)}")


def _run_lengths(mask: dict[str, object]) -> dict[str, object]:
    if "counts" not in mask or "size" not in mask:
        raise DataError("run lengths have no size or no counts")
    counts = mask["counts"]
    return {"size": mask["size"], "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


_BoxKey = tuple[Id, ...]
"""Image id and the four edges in hundredths of a pixel."""


@dataclass(frozen=True)
class LinkedAnnotations:
    """The annotations of an instances file that belong to the rows."""

    instances: Instances
    ids_by_box: Mapping[_BoxKey, tuple[Id, ...]]

    @classmethod
    def read(cls, path: Path, rows: Iterable[PthRow], problems: Problems) -> LinkedAnnotations:
        """Keep the annotations that the rows name, or all of the rows' images if a row names none.

        Raises:
            DataError: as `read_instances`.
        """
        coco = [row for row in rows if row.family == "coco"]
        named = {row.annotation_id for row in coco if row.annotation_id is not None}
        if all(row.annotation_id is not None for row in coco):
            return cls(read_instances(path, annotation_ids=named, problems=problems), {})
        wanted = {row.number for row in coco if row.number is not None}
        instances = read_instances(path, image_ids=wanted, problems=problems)
        ids: dict[_BoxKey, tuple[Id, ...]] = {}
        for annotation in instances.annotations.values():
            if annotation.bbox is not None:
                key = _key(annotation.image_id, xywh_to_xyxy(annotation.bbox))
                ids[key] = (*ids.get(key, ()), annotation.id)
        return cls(instances, ids)

    def id_by_box(self, row: PthRow, box: BoxXYXY, problems: Problems) -> Id | None:
        """The annotation of the row's image that has the box; None, with a problem, if there is none or several."""
        found = self.ids_by_box.get(_key(row.number or 0, box), ())
        if len(found) == 1:
            return found[0]
        problems.add("annotation_not_found", row.where, f"{len(found)} annotations have the box {list(row.box)}")
        return None

    def size_and_mask(
        self, row: PthRow, annotation_id: int, box: BoxXYXY, problems: Problems
    ) -> tuple[int | None, int | None, bytes | None]:
        """The image's width and height and the mask of the annotation that the row names; None for missing ones.

        Raises:
            DataError: the annotation belongs to another image.
        """
        annotation = self.instances.annotations.get(annotation_id)
        if annotation is None:
            problems.add("annotation_not_found", row.where, f"annotation {annotation_id}")
            return None, None, None
        if annotation.image_id != row.number:
            raise DataError(
                f"annotation {annotation_id} is of image {annotation.image_id}, the tuple's image is {row.number}",
                where=row.where,
                hint="the instances file belongs to another data set",
            )
        image = self.instances.images.get(annotation.image_id)
        width, height = (image.width, image.height) if image else (None, None)
        if annotation.bbox is None:
            return width, height, annotation.segmentation or None
        if any(abs(a - b) > BOX_TOLERANCE for a, b in zip(box, xywh_to_xyxy(annotation.bbox), strict=True)):
            problems.add("box_differs_from_instances", row.where, f"{list(row.box)}, there {list(annotation.bbox)}")
            return width, height, None
        return width, height, annotation.segmentation or None


def _key(image_id: Id, box: BoxXYXY) -> _BoxKey:
    """Image id and edges; a box that is not finite has fewer edges, and so matches no annotation."""
    return image_id, *(round(edge * 100) for edge in box if isfinite(edge * 100))


SOURCE = Source(
    description="the .pth lists of ReSC, TransVG, CLIP-VG, HiVG and OneRef, one file per split",
    read=read_pth,
    settings=PthSettings,
    files={"*": (), INSTANCES: ("instances.json", "instances_train2014.json")},
    sniff=sniff_rows,
    optional=frozenset({INSTANCES}),
)
