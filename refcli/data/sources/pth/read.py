"""The `.pth` lists of ReSC, TransVG, CLIP-VG, HiVG and OneRef: one tuple per expression, in several layouts."""

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
from refcli.data.sources.coco.instances import Instances, coco_image, read_instances, xywh_to_xyxy
from refcli.data.sources.image_names import coco_id, own_image
from refcli.data.sources.known_keys import KeyLog, KnownKeys, MeaningError, excerpt
from refcli.data.sources.pth.rows import Box, Family, Row, read_rows, starts_rows
from refcli.data.sources.record import BoxXYXY, Problems, RawExpression, RawImage, RawRecord, RawRegion, Source
from refcli.data.sources.referit import saiapr_image
from refcli.data.sources.rows import Id, Rejections, convert_row, side_of
from refcli.errors import DataError

INSTANCES = "instances"
ENOUGH_BOXES = 50
"""Of so many x, y, width, height boxes one would have a width up to x or a height up to y: in RefCOCO three in five."""

FEW = 100
"""Of so many boxes, one that contradicts the others is an odd one; it is listed where it is impossible."""

BoxKind = Literal["xywh", "xyxy"]


class PthSettings(Settings):
    """Choices of the reader; `auto` settles them from the rows of each file."""

    boxes: Literal["auto", "xywh", "xyxy"] = "auto"
    """What the four numbers are. auto: what the layout has, unless the boxes tell otherwise, which is an error."""
    images: Literal["auto", "coco", "referit", "flickr", "own"] = "auto"
    """Whose photographs these are; `own`: none of the three. auto: COCO's where the names are those of 2014, or are
    numbers of twelve digits in tuples that name COCO's annotations, or beside an `instances` file."""
    inclusive_boxes: bool = True
    """The far edges of ReferIt's and Flickr30k's boxes name the last pixel, so they are moved out by one pixel. False
    takes the numbers as edges, as TransVG and OneRef do: the boxes are one pixel short."""
    first_flickr_pixel: Literal[0, 1] = 0
    """Number of the first column and row in Flickr30k's boxes. The dataset's own parser subtracts the 1 of its XML."""


class _Object(NamedTuple):
    """What a row refers to."""

    image: RawImage
    region: RawRegion


class _Size(msgspec.Struct):
    height: int | None = None
    width: int | None = None


_SIZE = KnownKeys("tuple", frozenset({"height", "width"}), frozenset({"file_name", "id"}), has_box=True)


def read_pth(files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems) -> Iterator[RawRecord]:
    """Yield one record per run of tuples about the same box, split by split; see `Reader`.

    An expression's id is the position of its tuple, from 0. TransVG's tuples of COCO name the annotation, and masks and
    image sizes are looked up by it if there is an `instances` file. OneRef's have both; the annotation is looked up by
    its box.

    Args:
        files: a file per split, saved by torch or as the same lists in JSON; optionally `instances`.
        settings: a `PthSettings`.
        dataset: for the keys of images that are not of COCO, ReferIt or Flickr30k.
        problems: nothing is left out, but `box_kind_assumed` (too few boxes to tell; one per file and family),
            `first_flickr_pixel_may_be_1` (one per file), `unreadable_segmentation`, `annotation_not_found` and
            `box_differs_from_instances` (no mask is joined).

    Raises:
        DataError: a tuple of no known layout, layouts that do not go together, or boxes that contradict their kind.
    """
    assert isinstance(settings, PthSettings)
    family = None if settings.images == "auto" else settings.images
    rows_by_split = {
        split: read_rows(path, family=family, problems=problems) for split, path in files.items() if split != INSTANCES
    }
    all_rows = (row for rows in rows_by_split.values() for row in rows)
    annotated = Annotated.read(files[INSTANCES], all_rows, problems) if INSTANCES in files else None
    for split, rows in rows_by_split.items():
        kinds = _box_kinds(rows, settings, files[split], problems)
        objects = _objects(rows, kinds, settings, dataset, annotated, problems)
        for meant, run in groupby(objects, key=itemgetter(0)):
            members = [row for _, row in run]
            yield RawRecord(
                split=split,
                image=meant.image,
                expressions=tuple(RawExpression(str(row.index), row.phrase) for row in members),
                regions=(meant.region,),
                where=members[0].where,
            )


def _box_kinds(rows: list[Row], settings: PthSettings, path: Path, problems: Problems) -> dict[Family, BoxKind]:
    """What the four numbers are, for each family of the file, compared with all of its boxes."""
    boxes: dict[Family, list[Row]] = {}
    for row in rows:
        boxes.setdefault(row.family, []).append(row)
    if "flickr" in boxes:
        _check_first_pixel(boxes["flickr"], settings, path, problems)
    return {family: _box_kind(family, members, settings, path, problems) for family, members in boxes.items()}


def _box_kind(family: Family, rows: list[Row], settings: PthSettings, path: Path, problems: Problems) -> BoxKind:
    is_inclusive = family in ("referit", "flickr")
    proofs = [row for row in rows if _is_never_xyxy(row.box, is_inclusive)]
    if len(proofs) * FEW < len(rows):
        proofs = []
    proof = proofs[0] if proofs else None
    kind = _usual_kind(rows[0]) if settings.boxes == "auto" else settings.boxes
    if proof is not None and kind == "xyxy":
        raise DataError(
            f"the boxes of {family} are read as corners, but {list(proof.box)} can only be x, y, width, height",
            where=f"{path}: tuple {proof.index}",
            hint="if all are, declare the setting boxes: xywh; else the file contradicts itself",
        )
    if proof is None and settings.boxes == "auto" and kind != "xyxy":
        if kind is None or len(rows) >= ENOUGH_BOXES:
            raise DataError(
                f"all {len(rows)} boxes of {family} could be corners, where x, y, width, height would have shown itself"
                if kind
                else "the boxes do not tell whether they are corners or x, y, width, height",
                where=str(path),
                hint="look at some, and declare the setting boxes: xyxy or boxes: xywh",
            )
        problems.add("box_kind_assumed", f"{path.name}: {family}", f"{len(rows)} boxes, taken as x, y, width, height")
    return kind or "xywh"


def _usual_kind(row: Row) -> BoxKind | None:
    if row.layout == "mixup":
        return "xywh"
    return {"coco": "xywh", "referit": "xyxy", "flickr": "xyxy", "own": None}[row.family]


def _is_never_xyxy(box: Box, is_inclusive: bool) -> bool:
    """Whether a box has no extent when it is read as corners, but has some as x, y, width, height."""
    first_x, first_y, last_x, last_y = box
    if min(last_x, last_y) < 0 or (min(last_x, last_y) == 0 and not is_inclusive):
        return False
    if is_inclusive:
        return last_x < first_x or last_y < first_y
    return last_x <= first_x or last_y <= first_y


def _check_first_pixel(rows: list[Row], settings: PthSettings, path: Path, problems: Problems) -> None:
    before = [row for row in rows if min(row.box[:2]) < settings.first_flickr_pixel]
    if len(before) * FEW >= len(rows):
        zero = before[0]
        raise DataError(
            f"the box {list(zero.box)} begins before pixel {settings.first_flickr_pixel}, the first one",
            where=f"{path}: tuple {zero.index}",
            hint="check the setting first_flickr_pixel",
        )
    if settings.first_flickr_pixel == 0 and len(rows) >= ENOUGH_BOXES and all(min(row.box[:2]) > 0 for row in rows):
        problems.add("first_flickr_pixel_may_be_1", f"{path.name}: flickr", f"none of {len(rows)} boxes begins at 0")


def _objects(
    rows: list[Row],
    kinds: Mapping[Family, BoxKind],
    settings: PthSettings,
    dataset: str,
    annotated: Annotated | None,
    problems: Problems,
) -> Iterator[tuple[_Object, Row]]:
    """What each row refers to; rows that say that they are not to be read so are listed."""
    rejected = Rejections(problems)
    keys = KeyLog(rows[0].where.partition(": ")[0], problems)
    num_good = 0
    for row in rows:
        try:
            meant = _object(row, kinds[row.family], settings, dataset, annotated, problems, keys)
        except MeaningError as error:
            rejected.add(error, row.where)
            continue
        num_good += 1
        yield meant, row
    keys.finish()
    if not num_good:
        rejected.refuse_if_any()


def _object(
    row: Row,
    kind: BoxKind,
    settings: PthSettings,
    dataset: str,
    annotated: Annotated | None,
    problems: Problems,
    keys: KeyLog,
) -> _Object:
    box = _edges(row, kind, settings)
    width = height = None
    if isinstance(row.about, dict):
        size = convert_row(row.about, _Size, where=row.where, problems=problems, needed=(), keys=(_SIZE, keys))
        width, height = side_of(size.width), side_of(size.height)
    segmentation: bytes | None = None
    has_lost_mask = False
    source_id: str | None = None
    if row.layout == "oneref":
        if row.last and not isinstance(row.last, str):
            segmentation = _segmentation(row, problems)
            has_lost_mask = segmentation is None
        if annotated is not None and row.family == "coco":
            found = annotated.id_by_box(row, box, problems)
            source_id = None if found is None else f"coco:{found}"
    elif row.annotation_id is not None:
        source_id = f"coco:{row.annotation_id}"
        if annotated is not None:
            width, height, segmentation = annotated.size_and_mask(row, row.annotation_id, box, problems)
    elif row.referit_region is not None:
        source_id = f"saiapr:{row.referit_region}"
    is_own = settings.images == "auto" and annotated is None and row.layout != "transvg"
    return _Object(
        _image(row, dataset, width, height, is_own=is_own), RawRegion(box, segmentation, source_id, has_lost_mask)
    )


def _image(row: Row, dataset: str, width: int | None, height: int | None, *, is_own: bool) -> RawImage:
    """The image of a row; `is_own`: a number of twelve digits alone does not make it COCO's."""
    if row.family == "coco" and is_own and coco_id(row.file_name) is None:
        return own_image(row.file_name, dataset=dataset, width=width, height=height)
    if row.number is None:
        return RawImage(f"{dataset}:{row.file_name}", (row.file_name,), width, height)
    if row.family == "coco":
        return coco_image(row.number, width=width, height=height)
    if row.family == "referit":
        return saiapr_image(row.number, width=width, height=height)
    return RawImage(f"flickr30k:{row.number}", (f"{row.number}.jpg",), width, height)


def _edges(row: Row, kind: BoxKind, settings: PthSettings) -> BoxXYXY:
    left, top, right, bottom = map(float, row.box)
    if kind == "xywh":
        right, bottom = left + right, top + bottom
    outwards = 1.0 if settings.inclusive_boxes and row.family in ("referit", "flickr") else 0.0
    first = float(settings.first_flickr_pixel) if row.family == "flickr" else 0.0
    return left - first, top - first, right - first + outwards, bottom - first + outwards


def _segmentation(row: Row, problems: Problems) -> bytes | None:
    """The polygons or run lengths of a OneRef tuple as JSON text; None if they are none."""
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
        return part  # one polygon by itself; the numbers are checked where it is drawn
    raise DataError(f"a polygon is not a list of numbers but {excerpt(part)}")


def _run_lengths(mask: dict[str, object]) -> dict[str, object]:
    if "counts" not in mask or "size" not in mask:
        raise DataError("run lengths have no size or no counts")
    counts = mask["counts"]
    return {"size": mask["size"], "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


SOURCE = Source(
    description="the .pth lists of ReSC, TransVG, CLIP-VG, HiVG and OneRef, one file per split",
    read=read_pth,
    settings=PthSettings,
    files={"*": (), INSTANCES: ("instances.json", "instances_train2014.json")},
    sniff=starts_rows,
    optional=frozenset({INSTANCES}),
)


BOX_TOLERANCE = 0.02
"""Pixels by which a box may differ from that of the annotation it names; both are written with two decimals."""

_BoxKey = tuple[Id, ...]
"""Image id and the four edges in hundredths of a pixel."""


@dataclass(frozen=True)
class Annotated:
    """What an instances file knows of the rows' objects."""

    instances: Instances
    ids_by_box: Mapping[_BoxKey, tuple[Id, ...]]

    @classmethod
    def read(cls, path: Path, rows: Iterable[Row], problems: Problems) -> Annotated:
        """Keep the annotations that rows name, or all those of the rows' images if some row names none.

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

    def id_by_box(self, row: Row, box: BoxXYXY, problems: Problems) -> Id | None:
        """The one annotation of the row's image that has its box; None, and a problem, if there is none or several."""
        found = self.ids_by_box.get(_key(row.number or 0, box), ())
        if len(found) == 1:
            return found[0]
        problems.add("annotation_not_found", row.where, f"{len(found)} annotations have the box {list(row.box)}")
        return None

    def size_and_mask(
        self, row: Row, annotation_id: int, box: BoxXYXY, problems: Problems
    ) -> tuple[int | None, int | None, bytes | None]:
        """Width and height of the image and mask of the annotation that the row names, as far as they are there.

        Raises:
            DataError: the annotation is of another image.
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
    """A key that no annotation has, for want of an edge, if the box is not finite."""
    return image_id, *(round(edge * 100) for edge in box if isfinite(edge * 100))
