"""Joining the rows of a `.pth` list with COCO's annotations: by id where a row names one, else by its box."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from refcli.data.sources.coco_instances import Instances, read_instances, xywh_to_xyxy
from refcli.data.sources.pth_rows import Row
from refcli.data.sources.record import BoxXYXY, Problems
from refcli.data.sources.rows import Id
from refcli.errors import DataError

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
