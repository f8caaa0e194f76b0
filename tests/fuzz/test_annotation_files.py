"""Annotation files of every format: any content is read record by record or refused."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from harness import NASTY, NUM_INPUTS, damaged, fuzz, map_bytes, mutated_json, mutated_json_bytes, mutated_lines
from hypothesis import strategies as st

from refcli.data.preparation.dataset_images import Place
from refcli.data.preparation.finish import FinishSettings, storable
from refcli.data.preparation.plan import plan_file
from refcli.data.preparation.run import finish_chunk
from refcli.data.sources.record import Problems
from refcli.data.store.checks import check_table

SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]
RUNS = {"size": [80, 100], "counts": [100, 50, 7850]}
IMAGE = {"id": 7, "file_name": "COCO_train2014_000000000007.jpg", "width": 100, "height": 80}
ANNOTATION = {"id": 3, "image_id": 7, "category_id": 1, "bbox": [10, 10, 20, 20], "iscrowd": 0, "area": 400}
INSTANCES = {
    "info": {},
    "images": [IMAGE, {**IMAGE, "id": "8", "file_name": "a/b.jpg"}],
    "annotations": [
        {**ANNOTATION, "segmentation": SQUARE},
        {**ANNOTATION, "id": 4, "segmentation": RUNS, "attributes": {"rotation": 0.0, "occluded": False}},
        {**ANNOTATION, "id": 5, "image_id": "8", "segmentation": [RUNS]},
    ],
    "categories": [{"id": 1, "name": "cup"}],
}
SENTENCES = [
    {"sent": "the cup", "raw": "The cup", "sent_id": 1, "tokens": ["the", "cup"]},
    {"sent": "the jug", "raw": "The jug", "sent_id": 2, "exist": False},
]
REF = {"ref_id": 1, "ann_id": 3, "image_id": 7, "split": "val", "sentences": SENTENCES, "category_id": 1}
REFS = [REF, {**REF, "ref_id": 2, "ann_id": 5, "image_id": "8", "split": "testAB"}]
GREFS = [
    {**REF, "ann_id": [3, 4], "no_target": False},
    {**REF, "ref_id": 2, "ann_id": [-1], "no_target": True},
    {**REF, "ref_id": 3, "ann_id": [], "source": "zero"},
]
CAPTION = {**IMAGE, "caption": "a red kite above a bench", "dataset_name": "", "original_id": 7}
GROUNDING = {
    "images": [CAPTION, {**CAPTION, "id": 9, "dataset_name": "flickr"}, {**CAPTION, "id": 10, "data_source": "coco"}],
    "annotations": [
        {**ANNOTATION, "tokens_positive": [[0, 10]], "segmentation": SQUARE},
        {**ANNOTATION, "id": 4, "tokens_positive": [[17, 24]], "original_id": 12},
        {**ANNOTATION, "id": 5, "image_id": 9, "tokens_positive": [[0, 5], [6, 10]]},
        {**ANNOTATION, "id": 6, "image_id": 10, "bbox": [0, 0, 0, 0], "category_id": -1, "empty": True, "iscrowd": -1},
    ],
    "categories": [{"id": 1, "name": "thing"}],
}
PLAIN_COCO = {
    "images": [IMAGE],
    "annotations": [
        {**ANNOTATION, "expression": "the cup", "segmentation": SQUARE},
        {**ANNOTATION, "id": 4, "sentences": SENTENCES},
        {**ANNOTATION, "id": 5, "expressions": ["a", "b"], "exist": False},
    ],
    "categories": INSTANCES["categories"],
}
LINES = [
    {"image": "a.jpg", "expression": "the cup", "box": [10, 20, 40, 50], "width": 100, "height": 80, "split": "val"},
    {"image": "a.jpg", "expressions": ["both", "two"], "boxes": [[1, 2, 30, 40], [50, 20, 60, 60]], "id": "x",
     "segmentation": [SQUARE, None], "width": 100, "height": 80, "kind": "plural", "image_id": "coco:9"},
    {"image": "a.jpg", "expression": "the fork", "no_target": True},
    {"image": "b.jpg", "expression": "it", "segmentation": RUNS, "width": 100, "height": 80},
]  # fmt: skip
REGIONS = [
    {"bbox": [10, 10, 30, 30], "phrase": "a cup"},
    {"bbox": [[1, 1, 5, 5], [40, 40, 60, 60]], "phrase": ["a jug"]},
]
INSTANCE = {"bbox": [10, 10, 30, 30], "label": 1, "category": "cup"}
ODVG = [
    {"filename": "a.jpg", "height": 80, "width": 100, "grounding": {"caption": "a cup and a jug", "regions": REGIONS}},
    {"filename": "b.jpg", "height": 80, "width": 100, "detection": {"instances": [INSTANCE]}},
]
PTH = [
    ["COCO_train2014_000000000007.jpg", "3.pth", [10.0, 10.0, 20.0, 5.0], "the cup", [["r1", "cup"]]],
    ["COCO_train2014_000000000007.jpg", "4.pth", [50.0, 50.0, 20.0, 20.0], "the jug", []],
]
ONEREF = [
    ["COCO_train2014_000000000007.jpg", {"height": 80, "width": 100}, [50, 50, 20, 20], "the cup", SQUARE],
    ["COCO_train2014_000000000007.jpg", {"height": 80, "width": 100}, [5, 50, 20, 20], "the jug", RUNS, 0.5],
]
BOXES, SIZES = {"38685_1": [10, 10, 40, 50], "38685_2": [1, 2, 3, 4]}, {"38685.jpg": [480, 360]}
QUERIES = {"38685_1": ["the sky", "sky"], "38685_2": ["a tree"]}
SENTENCE = b"[/EN#1/people Two men] hold [/EN#2/other a cup] in [/EN#3/scene the yard] .\n"
XML = b"""<annotation><size><width>100</width><height>80</height><depth>3</depth></size>
<object><name>1</name><bndbox><xmin>10</xmin><ymin>20</ymin><xmax>59</xmax><ymax>79</ymax></bndbox></object>
<object><name>2</name><name>1</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>
<object><name>3</name><scene>1</scene><nobndbox>0</nobndbox></object></annotation>"""


def read(file: Path, form: str, settings: Mapping[str, Any] | None = None) -> None:
    """Read a file as `prepare-data` does before it writes the split."""
    plan = plan_file(file, name="fuzzed", form=form, overrides=settings)
    problems = Problems()
    records = storable(plan.source.read(plan.files, plan.settings, dataset="fuzzed", problems=problems), problems)
    chunk = [(record, Place(record.image.names[0], None)) for record in records]
    tables, found, evidence, _ = finish_chunk(chunk, FinishSettings("fuzzed"))
    for split, table in tables.items():
        check_table(table, dataset="fuzzed", split=split)
        evidence[split].contradiction(split, is_strict=True)
    problems.merge(found)
    json.dumps([dict(problems.counts), problems.places], ensure_ascii=False).encode()


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def as_pickle(document: Any) -> bytes:
    return pickle.dumps(document, protocol=2)


def as_torch_zip(document: Any) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", as_pickle(document))
    return content.getvalue()


def with_tuples(rows: Any) -> Any:
    return [tuple(row) if isinstance(row, list) else row for row in rows] if isinstance(rows, list) else rows


@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
def test_any_custom_lines_are_read_or_refused(tmp_path, num_inputs):
    fuzz(mutated_lines(LINES), lambda content: read(written(tmp_path / "val.jsonl", content), "jsonl"), num_inputs)


@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
def test_any_lines_of_odvg_are_read_or_refused(tmp_path, num_inputs):
    settings = {"detection": True}
    fuzz(
        mutated_lines(ODVG), lambda content: read(written(tmp_path / "a.jsonl", content), "odvg", settings), num_inputs
    )


@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
def test_any_coco_file_is_read_or_refused(tmp_path, num_inputs):
    settings: list[dict[str, Any]] = [{}, {"expressions": "category"}, {"unit": "phrase"}, {"unit": "annotation"}]
    inputs = st.tuples(mutated_json_bytes([GROUNDING, PLAIN_COCO]), st.sampled_from(settings))
    (tmp_path / "instances.json").write_text(json.dumps(INSTANCES))
    fuzz(inputs, lambda one: read(written(tmp_path / "val.json", one[0]), "coco", one[1]), num_inputs)


@pytest.mark.parametrize(("form", "name", "refs"), [("refer", "refs(unc)", REFS), ("grefcoco", "grefs(unc)", GREFS)])
@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
def test_any_refs_and_instances_are_read_or_refused(tmp_path, num_inputs, form, name, refs):
    changed_refs = st.one_of(
        mutated_json_bytes([refs]), mutated_json([refs]).map(as_pickle), damaged([as_pickle(refs), *map_bytes([refs])])
    )
    files = st.one_of(
        st.tuples(changed_refs, st.just(json.dumps(INSTANCES).encode())),
        st.tuples(st.just(json.dumps(refs).encode()), mutated_json_bytes([INSTANCES])),
    )

    def attempt(contents: tuple[bytes, bytes]) -> None:
        written(tmp_path / "instances.json", contents[1])
        read(written(tmp_path / f"{name}.json", contents[0]), form)

    fuzz(files, attempt, num_inputs)


@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
def test_any_list_of_tuples_is_read_or_refused(tmp_path, num_inputs):
    (tmp_path / "instances.json").write_text(json.dumps(INSTANCES))
    rows = mutated_json([PTH, ONEREF]).map(with_tuples)
    archives = [as_torch_zip(with_tuples(rows)) for rows in (PTH, ONEREF)]
    content = st.one_of(mutated_json_bytes([PTH, ONEREF]), rows.map(as_torch_zip), damaged(archives))
    fuzz(content, lambda one: read(written(tmp_path / "val.pth", one), "pth"), num_inputs)


@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
def test_any_files_of_referit_are_read_or_refused(tmp_path, num_inputs):
    originals = {"bbox": BOXES, "query_train": QUERIES, "imsize": SIZES}
    changes = [st.tuples(st.just(name), mutated_json_bytes([content])) for name, content in originals.items()]

    def attempt(change: tuple[str, bytes]) -> None:
        for name, content in originals.items():
            written(tmp_path / f"referit_{name}.json", json.dumps(content).encode())
        written(tmp_path / f"referit_{change[0]}.json", change[1])
        read(tmp_path / "referit_bbox.json", "referit")

    fuzz(st.one_of(changes), attempt, num_inputs)


@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
def test_any_files_of_flickr_entities_are_read_or_refused(tmp_path, num_inputs):
    originals = {
        "Sentences/11.txt": SENTENCE * 2,
        "Annotations/11.xml": XML,
        "train.txt": b"11\n12\n",
        "UNRELATED_CAPTIONS": b"# image sentence\n11 2\n",
    }
    numbers = [str(value).encode("utf-8", "replace") for value in NASTY if not isinstance(value, list | dict)]
    in_xml = st.tuples(st.sampled_from([b"100", b"10", b"20", b"59", b"1", b"3", b"0"]), st.sampled_from(numbers))
    changes = [
        *(st.tuples(st.just(name), damaged([content])) for name, content in originals.items()),
        in_xml.map(lambda one: ("Annotations/11.xml", XML.replace(*one, 1))),
        in_xml.map(lambda one: ("UNRELATED_CAPTIONS", b"11 " + one[1])),
    ]
    for folder in ("Sentences", "Annotations"):
        (tmp_path / folder).mkdir(exist_ok=True)

    def attempt(change: tuple[str, bytes]) -> None:
        for name, content in originals.items():
            written(tmp_path / name, content)
        written(tmp_path / change[0], change[1])
        read(tmp_path / "Annotations", "flickr", {"scene_boxes": True, "unrelated_captions": "drop"})

    fuzz(st.one_of(changes), attempt, num_inputs)
