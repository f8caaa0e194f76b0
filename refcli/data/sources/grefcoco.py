"""gRefCOCO: refs with any number of annotations, including none, in `grefs(unc).json` beside `instances.json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from refcli.config.schema import Settings
from refcli.data.sources.record import Problems, RawRecord, Source
from refcli.data.sources.refcoco import (
    INSTANCES_NAMES,
    NO_ANNOTATION,
    Ref,
    ReferSettings,
    TextField,
    join_refs,
    read_refs,
    refs_names,
    sniff_refs,
)
from refcli.data.sources.rows import Id
from refcli.errors import DataError


class GrefcocoSettings(ReferSettings):
    """Options of the gRefCOCO reader."""

    text: TextField = "raw"
    """`raw`: as typed, which the reference implementation (ReLA) reads; `sent`: the cleaned sentence."""


def read_grefcoco(
    files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
) -> Iterator[RawRecord]:
    """Yield one record per ref, with no regions if it has no target; see `Reader`.

    `ann_id` may be a list of ids, `[-1]`, `[]` or, in older rows, one bare id. The COCO-style export of the same data
    (`finetune_grefcoco_<split>.json`) is read by the source `coco`.

    Args:
        files: `refs` and `instances`.
        settings: a `GrefcocoSettings`.
        dataset: prefix for images and annotations that are not COCO's.
        problems: `repeated_annotation` (kept once), and those of `read_refs` and `join_refs`.

    Raises:
        DataError: a ref states that it has a target and that it has none; or as `read_refs` and
            `join_refs`.
    """
    assert isinstance(settings, GrefcocoSettings)

    def annotations_of(ref: Ref, where: str) -> tuple[Id, ...]:
        ann_ids = tuple(dict.fromkeys(ref.ann_ids))
        if len(ann_ids) < len(ref.ann_ids):
            problems.add("repeated_annotation", where, f"annotations {list(ref.ann_ids)}")
        named = tuple(ann_id for ann_id in ann_ids if ann_id != NO_ANNOTATION)
        if named and NO_ANNOTATION in ann_ids:
            raise DataError(f"the ref has the annotations {list(ann_ids)}, where -1 means none", where=where)
        if ref.no_target is not None and ref.no_target == bool(named):
            raise DataError(
                f"the ref has no_target {ref.no_target} and the annotations {list(ref.ann_ids)}", where=where
            )
        return named

    refs = read_refs(files["refs"], text=settings.text, problems=problems)
    return join_refs(refs, files, settings, annotations_of, dataset=dataset, problems=problems)


def sniff_grefcoco(path: Path) -> bool:
    """Whether a file is a list of refs with lists of annotations."""
    return sniff_refs(path) == "several"


SOURCE = Source(
    description="gRefCOCO's grefs(unc).json or .p with instances.json: several targets, or none",
    read=read_grefcoco,
    settings=GrefcocoSettings,
    files={"refs": refs_names("grefs"), "instances": INSTANCES_NAMES},
    sniff=sniff_grefcoco,
)
