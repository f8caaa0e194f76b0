"""Splits by membership: the rows of a mixed split whose object is in the same split of a refs file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from refcli.data.sources.coco.instances import read_instances
from refcli.data.sources.record import Problems, RawRecord
from refcli.data.sources.refcoco import read_refs
from refcli.data.sources.rows import comparable_id, whole_number
from refcli.errors import DataError
from refcli.geometry.boxes import BoxXYXY

REFS, INSTANCES = "refs", "instances"
"""Roles of the files of a split by membership."""
_STEP = 0.01
"""Pixels to which boxes are compared: COCO's have two decimals, which 32-bit numbers hold only approximately."""

_Object = tuple[str, tuple[int, ...]]
"""An image's key, and the box in steps."""


@dataclass
class Members:
    """The objects of a refs file by split; each is found once."""

    author: str
    """Of the split, as in `refs(unc).p`."""
    objects: dict[str, Counter[_Object]]

    @classmethod
    def read(cls, files: Mapping[str, Path], problems: Problems) -> Members | None:
        """Read `refs(<author>).p` and `instances.json`; None if no refs are given.

        Raises:
            DataError: one of the two is missing or unreadable.
        """
        refs_file, instances_file = files.get(REFS), files.get(INSTANCES)
        if refs_file is None:
            return None
        if instances_file is None:
            raise DataError(
                "the boxes of the refs are missing", where=str(refs_file), hint="put instances.json beside the refs"
            )
        refs = read_refs(refs_file, text="sent", problems=problems)
        instances = read_instances(instances_file, annotation_ids={one for ref in refs for one in ref.ann_ids})
        objects: dict[str, Counter[_Object]] = {}
        for ref in refs:
            number = whole_number(comparable_id(ref.image_id))
            for one in ref.ann_ids:
                annotation = instances.annotations.get(one)
                if annotation is None or annotation.bbox is None or number is None:
                    continue
                left, top, width, height = annotation.bbox
                box = (left, top, left + width, top + height)
                for split in ref.splits:
                    objects.setdefault(split, Counter())[f"coco:{number}", _in_steps(box)] += 1
        _, _, author = refs_file.name.partition("(")
        return cls(author.partition(")")[0] or REFS, objects)

    def find(self, record: RawRecord, split: str) -> str | None:
        """The name `<split>_<author>` if the object of a record is in that split of the refs, else None."""
        box = record.regions[0].box_xyxy if len(record.regions) == 1 else None
        found = self.objects.get(split)
        if box is None or found is None:
            return None
        key = (record.image.key, _in_steps(box))
        if found[key] <= 0:
            return None
        found[key] -= 1
        return f"{split}_{self.author}"

    def num_left(self, split: str) -> int:
        """The number of objects of a split that were not found."""
        return self.objects.get(split, Counter()).total()


def _in_steps(box: BoxXYXY) -> tuple[int, ...]:
    return tuple(round(side / _STEP) for side in box)
