"""aRefCOCO: new descriptions of the objects of RefCOCO and RefCOCOg, joined with REFER's files of both."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from refcli.config.schema import Settings
from refcli.data.reading.json_files import parse_json, read_json
from refcli.data.reading.streams import text_start
from refcli.data.sources.coco.instances import BoxXYWH, xywh_to_xyxy
from refcli.data.sources.known_keys import KeyLog, KnownKeys
from refcli.data.sources.record import Problems, RawRecord, Source
from refcli.data.sources.refcoco import (
    INSTANCES_NAMES,
    Ref,
    ReferSettings,
    Sentence,
    join_refs,
    read_refs,
    single_annotation,
)
from refcli.data.sources.rows import Id, Rejections, comparable_id, decode_row
from refcli.errors import DataError

ORIGINALS = ("refcoco", "refcocog")
"""The data sets whose refs are described: RefCOCO (unc) and RefCOCOg (umd)."""
_INSTANCES = "{}_instances"
_FILE = KnownKeys("file", frozenset({"annotations"}), frozenset({"info", "licenses"}))
_ENTITY = KnownKeys(
    "annotation",
    frozenset({"entity_id", "split", "ref_id", "original_dataset", "descriptions", "bbox"}),
    frozenset({"category_name"}),
)
_BOX_TOLERANCE = 1.0
"""Pixels by which a rounded box may differ from the annotation's."""
_SPLIT_OF_UMD = "test"
"""A split that refs(umd).p of RefCOCOg has; refs(google).p, which numbers the refs otherwise, has not."""
_SNIFFED = re.compile(rb'"original_dataset"\s*:')


class ArefcocoSettings(Settings):
    """Options of the aRefCOCO reader: none."""


class Entity(msgspec.Struct):
    """One entry of the file: an object and its descriptions."""

    entity_id: int | str
    split: str
    ref_id: int | str
    original_dataset: Literal["refcoco", "refcocog"]
    """The data set that the `ref_id` belongs to."""
    descriptions: list[str]
    bbox: BoxXYWH | None = None
    """The object's box, only compared: whether it is x, y, width, height or two corners is not documented."""


class EntityRef(Ref):
    """A ref of RefCOCO or RefCOCOg with the id, the split and the descriptions of an entity."""

    def place(self, path: Path) -> str:
        """See `Ref.place`."""
        return _place(path, self.ref_id)


def read_arefcoco(
    files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
) -> Iterator[RawRecord]:
    """Yield one record per entity: first those of RefCOCO, then those of RefCOCOg; see `Reader`.

    Box, mask and image are those of the ref that an entity names. The id of an expression is
    `<entity_id>/<position>`.

    Args:
        files: `annotations`, `refcoco` (refs(unc).p) and `refcocog` (refs(umd).p); `refcoco_instances` and
            `refcocog_instances`, or an instances.json beside each refs file.
        settings: an `ArefcocoSettings`.
        dataset: prefix for images and annotations that are not COCO's.
        problems: collects omitted entities, `broken_row` and `unknown_ref`; `box_differs_from_instances` (kept), where
            the entity's own box is neither reading of the ref's; and those of `read_refs` and `join_refs`.

    Raises:
        DataError: the file has no list of annotations, an entity occurs twice, or a refs file has none of the refs.
    """
    path = files["annotations"]
    entities = _read_entities(path, problems)
    boxes = {_place(path, one.entity_id): one.bbox for one in entities}
    for original in ORIGINALS:
        described = [one for one in entities if one.original_dataset == original]
        if described:
            refs = _refs_of(described, files[original], path, problems)
            joined = {"refs": path, "instances": _instances_of(original, files)}
            for record in join_refs(
                refs, joined, ReferSettings(text="raw"), single_annotation, dataset=dataset, problems=problems
            ):
                _compare_box(record, boxes[record.where], problems)
                yield record


def sniff_arefcoco(path: Path) -> bool:
    """Whether a file starts with annotations that name an `original_dataset`."""
    start = text_start(path)
    return start.startswith(b"{") and b'"entity_id"' in start and _SNIFFED.search(start) is not None


def _read_entities(path: Path, problems: Problems) -> list[Entity]:
    file = read_json(path, dict[str, msgspec.Raw])
    keys = KeyLog(path.name, problems)
    keys.check(_FILE, file, str(path))
    if "annotations" not in file:
        raise DataError("there is no list of annotations", where=str(path), hint="this is not arefcoco.json")
    rejected = Rejections(problems)
    entities: dict[Id, Entity] = {}
    for index, row in enumerate(parse_json(file["annotations"], list[msgspec.Raw], where=f"{path}: annotations")):
        where = f"{path.name}: annotations[{index}]"
        try:
            entity = decode_row(row, Entity, where=where, problems=problems, needed=(), keys=(_ENTITY, keys))
            if not entity.split:
                raise DataError("the entity has no split", where=where)
        except DataError as error:
            rejected.add(error, where)
            continue
        if entities.setdefault(comparable_id(entity.entity_id), entity) is not entity:
            raise DataError(f"the entity {entity.entity_id} occurs twice", where=where)
    keys.finish()
    if not entities:
        rejected.raise_first()
    return list(entities.values())


def _refs_of(entities: list[Entity], refs: Path, path: Path, problems: Problems) -> list[Ref]:
    """The refs that entities describe, with their descriptions as sentences."""
    originals = {comparable_id(ref.ref_id): ref for ref in read_refs(refs, text="raw", problems=problems)}
    if entities[0].original_dataset == "refcocog" and all(one.split != _SPLIT_OF_UMD for one in originals.values()):
        raise DataError(
            "these are not the refs of RefCOCOg's umd splits: no ref is of the split test",
            where=str(refs),
            hint="give refs(umd).p; refs(google).p numbers the refs otherwise",
        )
    described: list[Ref] = []
    for entity in entities:
        original = originals.get(comparable_id(entity.ref_id))
        if original is None:
            where = _place(path, entity.entity_id)
            problems.add("unknown_ref", where, f"{entity.original_dataset} has no ref {entity.ref_id}")
            continue
        sentences = [Sentence(raw=text, sent_id=number) for number, text in enumerate(entity.descriptions)]
        described.append(EntityRef(entity.entity_id, original.image_id, original.ann_id, entity.split, list(sentences)))
    if not described:
        raise DataError(
            f"it has none of the refs that {path.name} describes",
            where=str(refs),
            hint="aRefCOCO needs refs(unc).p of RefCOCO and refs(umd).p of RefCOCOg",
        )
    return described


def _compare_box(record: RawRecord, given: BoxXYWH | None, problems: Problems) -> None:
    """Report a box of an entity that is not the box of its ref."""
    box = record.regions[0].box_xyxy
    if given is None or box is None:
        return
    readings = (given, xywh_to_xyxy(given))
    if all(max(abs(a - b) for a, b in zip(box, one, strict=True)) > _BOX_TOLERANCE for one in readings):
        problems.add("box_differs_from_instances", record.where, f"{list(given)}, the ref has {list(box)}")


def _place(path: Path, entity_id: int | str) -> str:
    return f"{path.name}: entity {entity_id}"


def _instances_of(original: str, files: Mapping[str, Path]) -> Path:
    role = _INSTANCES.format(original)
    beside = [files[original].parent / name for name in INSTANCES_NAMES]
    found = files.get(role) or next((path for path in beside if path.exists()), None)
    if found is None:
        raise DataError(
            "there is no instances.json beside it", where=str(files[original]), hint=f"give --with {role}=FILE"
        )
    return found


def _beside(original: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Names in the folder of a data set, below the main file's folder or next to it."""
    return tuple(f"{folder}{original}/{name}" for folder in ("", "../") for name in names)


SOURCE = Source(
    description="aRefCOCO's arefcoco.json with the refs(<split_by>).p and instances.json of RefCOCO and RefCOCOg",
    read=read_arefcoco,
    settings=ArefcocoSettings,
    files={
        "annotations": ("arefcoco.json",),
        "refcoco": _beside("refcoco", ("refs(unc).p", "refs(unc).json")),
        "refcocog": _beside("refcocog", ("refs(umd).p", "refs(umd).json")),
        "refcoco_instances": _beside("refcoco", ("instances.json",)),
        "refcocog_instances": _beside("refcocog", ("instances.json",)),
    },
    sniff=sniff_arefcoco,
    optional=frozenset({"refcoco_instances", "refcocog_instances"}),
)
