"""The layouts of published Parquet files, each recognised by its columns and mapped row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from refcli.data.reading.json_files import parse_json
from refcli.data.sources.image_names import named_image
from refcli.data.sources.known_keys import KnownKeys, excerpt
from refcli.data.sources.parquet.row import RowContext, box_xyxy, segmentation
from refcli.data.sources.record import RawExpression, RawImage, RawRecord, RawRegion
from refcli.data.sources.rows import decode_row
from refcli.errors import DataError

IMAGE = "image"
"""The column of images of all published layouts."""


class Layout(NamedTuple):
    """One layout."""

    name: str
    columns: frozenset[str]
    """Columns that show it."""
    row: type[msgspec.Struct]
    keys: KnownKeys
    records: Callable[[Any, RowContext], Iterable[RawRecord]]
    """The records of a row; raises DataError for one that cannot be used."""
    image: str | None = IMAGE
    """The column of images; None: the layout has none."""
    id: str | None = None
    """The column whose values the ids of expressions begin with, so that rows may repeat one."""
    fields: Mapping[str, str] | None = None
    """Field of the row -> its column; None: they have the same names."""
    mixed: str | None = None
    """A split that combines those of two papers."""


def _keys(row: type[msgspec.Struct], *unused: str, has_box: bool = False, has_corners: bool = False) -> KnownKeys:
    return KnownKeys(
        "column",
        frozenset({*row.__struct_fields__, IMAGE}),
        frozenset(unused),
        has_box=has_box,
        has_corners=has_corners,
    )


class _LmmsRow(msgspec.Struct):
    answer: list[str]
    bbox: list[float]
    file_name: str
    segmentation: list[Any] | None = None
    question_id: str | int | None = None


def _lmms(row: _LmmsRow, at: RowContext) -> Iterable[RawRecord]:
    """An object with all its sentences: `answer`; the question asks for a caption. The box is x, y, width, height."""
    image = at.image(row.file_name)
    name = at.number if row.question_id is None else row.question_id
    texts = [RawExpression(f"{name}/{number}", text) for number, text in enumerate(row.answer)]
    region = RawRegion(box_xyxy(row.bbox, "xywh", at.where), segmentation(row.segmentation))
    yield at.record(image, texts, [region])


class _CocoObject(msgspec.Struct):
    """An annotation of COCO."""

    bbox: list[float]
    id: int
    segmentation: Any = None


_OBJECT_KEYS = KnownKeys(
    "annotation",
    frozenset(_CocoObject.__struct_fields__),
    frozenset({"area", "category_id", "image_id", "iscrowd"}),
    has_box=True,
)


def _region(found: _CocoObject, where: str) -> RawRegion:
    given = found.segmentation
    mask = bytes(given) if isinstance(given, msgspec.Raw) else segmentation(given)
    box = box_xyxy(found.bbox, "xywh", where)
    return RawRegion(box, mask, f"coco:{found.id}")


class _JsonObject(_CocoObject):
    segmentation: msgspec.Raw = msgspec.Raw(b"")


class _ImageInfo(msgspec.Struct):
    width: int | None = None
    height: int | None = None


class _RefRow(msgspec.Struct):
    ref_id: int
    image_id: int
    sentences: list[Any]
    bbox: list[float]
    raw_anns: str
    raw_image_info: str
    split: str


_BOX_TOLERANCE = 0.5
"""Pixels by which the box of a row may differ from that of its annotation, in either format."""


def _ref(row: _RefRow, at: RowContext) -> Iterable[RawRecord]:
    """A ref of REFER; `raw_anns` is COCO's annotation as JSON, whose box counts."""
    found = decode_row(
        row.raw_anns.encode(),
        _JsonObject,
        where=at.where,
        problems=at.problems,
        needed=_JsonObject.__struct_fields__,
        keys=(_OBJECT_KEYS, at.keys),
    )
    size = parse_json(row.raw_image_info.encode(), _ImageInfo, where=at.where)
    region = _region(found, at.where)
    readings = [found.bbox, region.box_xyxy or ()]
    if not any(_are_equal(row.bbox, one) for one in readings):
        raise DataError(f"the bbox {row.bbox} is not that of raw_anns, {found.bbox}", where=at.where)
    image = at.coco_image(row.image_id, width=size.width, height=size.height)
    yield at.record(image, at.sentences(row.ref_id, row.sentences), [region])


def _are_equal(box: Iterable[float], other: Iterable[float]) -> bool:
    one, two = list(box), list(other)
    return len(one) == len(two) and all(abs(a - b) <= _BOX_TOLERANCE for a, b in zip(one, two, strict=True))


class _RefInfo(msgspec.Struct):
    ref_id: int
    image_id: int
    sentences: list[Any]


class _RefOfImage(msgspec.Struct):
    ann_info: dict[str, Any]
    ref_info: dict[str, Any]


class _BenchmarkRow(msgspec.Struct):
    ref_list: list[_RefOfImage]
    image_info: _ImageInfo


_REF_INFO_KEYS = KnownKeys(
    "ref", frozenset(_RefInfo.__struct_fields__), frozenset({"ann_id", "category_id", "file_name", "sent_ids", "split"})
)


def _benchmark(row: _BenchmarkRow, at: RowContext) -> Iterable[RawRecord]:
    """An image with all its refs."""
    for one in row.ref_list:
        ref = at.part(one.ref_info, _RefInfo, _REF_INFO_KEYS)
        found = at.part(one.ann_info, _CocoObject, _OBJECT_KEYS)
        image = at.coco_image(ref.image_id, width=row.image_info.width, height=row.image_info.height)
        yield at.record(image, at.sentences(ref.ref_id, ref.sentences), [_region(found, at.where)])


class _Sample(msgspec.Struct):
    sentences: list[str]
    mask: dict[str, Any]


class _CleanedRow(msgspec.Struct):
    image_id: int
    samples: list[Any]
    file_name: str | None = None


_SAMPLE_KEYS = KnownKeys("sample", frozenset(_Sample.__struct_fields__), frozenset({"bbox"}))


def _cleaned(row: _CleanedRow, at: RowContext) -> Iterable[RawRecord]:
    """RefCOCO-M: an image with several masks. The extent of a mask is its box; the form of `bbox` is not documented."""
    image = at.coco_image(row.image_id)
    for number, value in enumerate(row.samples):
        sample = at.part(value, _Sample, _SAMPLE_KEYS)
        texts = [RawExpression(f"{row.image_id}/{number}/{index}", text) for index, text in enumerate(sample.sentences)]
        yield at.record(image, texts, [RawRegion(None, segmentation(sample.mask))])


class _RefL4Row(msgspec.Struct):
    id: int
    caption: str
    bbox: list[float]
    image_id: str
    file_name: str
    height: int
    width: int
    split: str
    bbox_id: str | None = None


_COCO, _OBJECTS365 = "coco", "o365"


def _ref_l4(row: _RefL4Row, at: RowContext) -> Iterable[RawRecord]:
    """Ref-L4: the kind is the origin of the image, `coco` or `o365`; the box is x, y, width, height."""
    origin, _, number = row.image_id.partition("_")
    if origin not in (_COCO, _OBJECTS365):
        raise DataError(f"the image_id {row.image_id!r} is neither COCO's nor Objects365's", where=at.where)
    image = named_image(row.file_name, dataset=at.dataset, width=row.width, height=row.height, origin="own")
    if origin == _COCO and number.isdecimal():
        known = at.coco_image(int(number), width=row.width, height=row.height)
        names = tuple(dict.fromkeys((*image.names[:1], *known.names)))
        image = RawImage(known.key, names, known.width, known.height)
    source_id = row.bbox_id.replace("_", ":", 1) if row.bbox_id else None
    region = RawRegion(box_xyxy(row.bbox, "xywh", at.where), None, source_id)
    yield at.record(image, [RawExpression(str(row.id), row.caption)], [region], kind=origin)


class _RefAdvRow(msgspec.Struct):
    row_idx: int
    normal_caption: str
    solution: list[float]
    distractors: int
    file_name: str
    width: int
    height: int
    image_source: str | None = None
    use_negation: bool = False


_DISTRACTOR_BINS = ((7, "distractors_7_or_more"), (4, "distractors_4_to_6"), (2, "distractors_2_to_3"))
"""Least number of distractors -> kind; the bins of the authors' table."""


def _ref_adv(row: _RefAdvRow, at: RowContext) -> Iterable[RawRecord]:
    """Ref-Adv-s: the kind is the bin of distractors, with `_negation` where the expression has one."""
    kind = next((name for least, name in _DISTRACTOR_BINS if row.distractors >= least), "distractors_0_to_1")
    origin = _COCO if (row.image_source or "").casefold().startswith(_COCO) else ""
    image = at.image(row.file_name, width=row.width, height=row.height, origin=origin)
    region = RawRegion(box_xyxy(row.solution, "xyxy", at.where))
    text = RawExpression(str(row.row_idx), row.normal_caption)
    yield at.record(image, [text], [region], kind=kind + ("_negation" if row.use_negation else ""))


class _PBenchRow(msgspec.Struct):
    id: int
    expression: str
    masks: list[dict[str, Any]]
    count: int


def _pbench(row: _PBenchRow, at: RowContext) -> Iterable[RawRecord]:
    """PBench: several masks per expression; the kind is the level, which is the split."""
    if row.count != len(row.masks):
        raise DataError(f"count is {row.count}, but there are {len(row.masks)} masks", where=at.where)
    regions = [RawRegion(None, segmentation(mask)) for mask in row.masks]
    yield at.record(at.image(), [RawExpression(str(row.id), row.expression)], regions, kind=at.split)


class _GroundingMeRow(msgspec.Struct):
    id: int | str
    description: str
    subtask_l1: str
    bbox: list[float] | None = None
    width: int | None = None
    height: int | None = None
    subtask_l2: str | None = None


SUBTASKS = ("discriminative", "spatial", "limited", "rejection")


def _grounding_me(row: _GroundingMeRow, at: RowContext) -> Iterable[RawRecord]:
    """GroundingME: the kind is `<subtask_l1>_<subtask_l2>`; a rejection has no target, whatever its box."""
    subtask = row.subtask_l1.strip().lower()
    if subtask not in SUBTASKS:
        raise DataError(
            f"subtask_l1 is {excerpt(row.subtask_l1)!r}", where=at.where, hint="it is " + ", ".join(SUBTASKS)
        )
    regions = [] if subtask == "rejection" else [RawRegion(box_xyxy(row.bbox, "xyxy", at.where))]
    kind = "_".join(filter(None, (subtask, (row.subtask_l2 or "").strip().lower())))
    image = at.image(width=row.width, height=row.height)
    yield at.record(image, [RawExpression(str(row.id), row.description)], regions, kind=kind)


LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "lmms-lab/RefCOCO",
        frozenset({"question", "answer", "bbox", "segmentation", "file_name"}),
        _LmmsRow,
        _keys(_LmmsRow, "question", "iscrowd", has_box=True),
        _lmms,
        id="question_id",
        mixed="val",
    ),
    Layout(
        "jxu124/refcoco",
        frozenset({"ref_id", "sentences", "raw_anns", "raw_image_info", "bbox", "image_id"}),
        _RefRow,
        _keys(
            _RefRow, "sent_ids", "file_name", "ann_id", "category_id", "raw_sentences", "image_path", "captions",
            "global_image_id", "anns_id",
        ),
        _ref,
        id="ref_id",
        image=None,
    ),
    Layout(
        "jxu124/refcoco-benchmark",
        frozenset({"ref_list", "image_info"}),
        _BenchmarkRow,
        _keys(_BenchmarkRow),
        _benchmark,
    ),
    Layout(
        "moondream/refcoco-m",
        frozenset({"samples", "image_id", IMAGE}),
        _CleanedRow,
        _keys(_CleanedRow),
        _cleaned,
        id="image_id",
    ),
    Layout(
        "JierunChen/Ref-L4",
        frozenset({"caption", "bbox", "bbox_id", "image_id", "file_name", "split"}),
        _RefL4Row,
        _keys(_RefL4Row, "bbox_area", "ori_category_id", "is_rewrite", has_box=True),
        _ref_l4,
        id="id",
        image=None,
    ),
    Layout(
        "dddraxxx/ref-adv-s",
        frozenset({"normal_caption", "solution", "distractors", "file_name"}),
        _RefAdvRow,
        _keys(_RefAdvRow, "human_authored", has_box=True, has_corners=True),
        _ref_adv,
        id="row_idx",
    ),
    Layout(
        "tiiuae/PBench",
        frozenset({"expression", "masks", "count", IMAGE}),
        _PBenchRow,
        _keys(_PBenchRow),
        _pbench,
        id="id",
    ),
    Layout(
        "lirang04/GroundingME",
        frozenset({"description", "bbox", "subtask_l1", IMAGE}),
        _GroundingMeRow,
        _keys(_GroundingMeRow, has_box=True, has_corners=True),
        _grounding_me,
        id="id",
    ),
)  # fmt: skip
"""Published layouts; no file has the columns of two."""
STORE_COLUMNS = frozenset({"id", "dataset", "split", "image", "image_id", "expression", "regions"})
"""Columns of the files of a refcli store."""
