"""The rules that all sources follow: one small release of each format is read, compressed and prepared."""

from __future__ import annotations

import gzip
import math
import pickle
import re
import shutil
from collections import Counter
from dataclasses import replace

import pytest
from corpora import CORPORA
from image_files import zipped

from refcli.contracts.example import RLE
from refcli.data.preparation.finish import region_mask
from refcli.data.preparation.plan import plan_file
from refcli.data.sources.detect import detect_format
from refcli.data.sources.labels import LabelSettings
from refcli.data.sources.record import Problems
from refcli.data.sources.table import SOURCES
from refcli.data.store.read import Store
from refcli.geometry.masks import mask_box, rle_area
from refcli.recipes.prepare_data import Preparation, prepare
from refcli.tables import lookup

DATASET = "tiny"
WIDTH, HEIGHT = 100, 80
LEAST_EXPRESSIONS = 3
KINDS = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
KEYS = re.compile(rf"(coco|saiapr|flickr30k):[0-9]+|{DATASET}:\S+")
PLACES = re.compile(r"\S.*\.[a-z]+(\.gz)?: \S.*")
PACKED = (".zip", ".parquet")
"""Suffixes of files that are compressed already."""
AREA_TOLERANCE = 0.06
"""Share of a mask's area: polygons are rasterised by whole pixels."""


@pytest.fixture(params=list(SOURCES))
def name(request):
    return request.param


@pytest.fixture(scope="session")
def main_files(tmp_path_factory):
    """The main file of every corpus, each in a folder of its own; tests only read them."""
    return {name: corpus.write(tmp_path_factory.mktemp(name)) for name, corpus in CORPORA.items()}


@pytest.fixture
def source(name):
    return lookup(SOURCES, name, what="source")


@pytest.fixture
def corpus(name):
    assert name in CORPORA, f"the source {name} has no corpus in corpora.py"
    return CORPORA[name]


@pytest.fixture
def main_file(corpus, tmp_path):
    (tmp_path / "raw").mkdir()
    return corpus.write(tmp_path / "raw")


def plan_of(file):
    """The plan for the main file of a corpus."""
    return plan_file(file, name=DATASET, overrides=CORPORA[detect_format(file)].settings)


def read(file):
    """All records, masks read, and the problems."""
    plan = plan_of(file)
    problems = Problems()
    records = list(plan.source.read(plan.files, plan.settings, dataset=DATASET, problems=problems))
    return [with_masks(record) for record in records], problems


def with_masks(record):
    """The record with masks in the place of functions that read them."""
    regions = tuple(
        replace(region, segmentation=region.segmentation())
        if callable(region.segmentation) and not isinstance(region.segmentation, RLE)
        else region
        for region in record.regions
    )
    return replace(record, regions=regions)


def box_of(region):
    """The box of a region, or the extent of its mask."""
    return region.box_xyxy or mask_box(region_mask(region, HEIGHT, WIDTH))


def packed(main_file, folder):
    """A copy of a release in which every file that is no archive is in gzip; returns its main file.

    A folder that is a main file becomes a zip of it.
    """
    if main_file.is_dir():
        folder.mkdir()
        return zipped(
            folder / f"{main_file.name}.zip",
            {f"{main_file.name}/{path.name}": path.read_bytes() for path in sorted(main_file.iterdir())},
        )
    shutil.copytree(main_file.parent, folder)
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix not in PACKED:
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    plain = folder / main_file.name
    return plain if plain.exists() else plain.with_name(plain.name + ".gz")


def test_every_corpus_belongs_to_a_source():
    assert set(CORPORA) == set(SOURCES)


def test_every_expression_is_read_and_has_a_unique_id_in_its_split(main_file, corpus):
    records, _ = read(main_file)
    ids = Counter((record.split, one.id) for record in records for one in record.expressions)
    assert len(ids) == corpus.num_expressions >= LEAST_EXPRESSIONS
    assert set(ids.values()) == {1}
    assert all(one.text.strip() for record in records for one in record.expressions)


LABELLED = [one for one in SOURCES if issubclass(lookup(SOURCES, one, what="source").settings, LabelSettings)]
LABELLED.remove("odvg")  # its release has phrases only


@pytest.mark.parametrize("labelled", LABELLED)
def test_labelled_boxes_can_be_read_as_images_whose_expressions_are_still_to_be_written(main_files, labelled):
    settings = {**CORPORA[labelled].settings, "expressions": "template"}
    plan = plan_file(main_files[labelled], name=DATASET, overrides=settings)
    records = list(plan.source.read(plan.files, plan.settings, dataset=DATASET, problems=Problems()))
    assert records
    assert all(record.needs_expressions and not record.expressions for record in records)


def test_every_record_names_its_file_and_entry(main_file):
    records, _ = read(main_file)
    assert [record.where for record in records if not PLACES.fullmatch(record.where)] == []


def test_boxes_are_ordered_floats_inside_the_image(main_file):
    records, _ = read(main_file)
    assert {(record.image.width, record.image.height) for record in records} <= {(WIDTH, HEIGHT), (None, None)}
    boxes = [box_of(region) for record in records for region in record.regions]
    assert len(boxes) >= LEAST_EXPRESSIONS
    for box in boxes:
        assert all(type(side) is float and math.isfinite(side) for side in box)
        x1, y1, x2, y2 = box
        assert 0 <= x1 < x2 <= WIDTH
        assert 0 <= y1 < y2 <= HEIGHT


def test_image_keys_have_a_known_family_and_file_names_are_relative(main_file, corpus):
    records, _ = read(main_file)
    images = [record.image for record in records]
    assert [image.key for image in images if not KEYS.fullmatch(image.key)] == []
    assert {image.key.partition(":")[0] for image in images} == corpus.families
    names = [name for image in images for name in image.names]
    assert all(names) and not any(name.startswith("/") or "\\" in name or ".." in name for name in names)
    assert all(image.names for image in images)


def test_problems_are_counted_by_kind_with_their_places(main_file, corpus):
    _, problems = read(main_file)
    assert problems.counts == corpus.problems
    assert all(KINDS.fullmatch(kind) for kind in problems.counts)
    assert {kind: len(places) for kind, places in problems.places.items()} == corpus.problems
    assert all(place for places in problems.places.values() for place in places)


def test_files_in_gzip_give_the_same_records(main_file, tmp_path):
    in_gzip = packed(main_file, tmp_path / "packed")
    plain_records, plain_problems = read(main_file)
    records, problems = read(in_gzip)
    assert [replace(record, where="") for record in records] == [replace(record, where="") for record in plain_records]
    assert problems.counts == plain_problems.counts
    assert in_gzip.suffix in PACKED or any(path.suffix == ".gz" for path in (tmp_path / "packed").iterdir())


def test_reading_twice_gives_the_same_records(main_file):
    assert read(main_file) == read(main_file)


def test_records_can_be_sent_to_another_process(main_file):
    plan = plan_of(main_file)
    for record in plan.source.read(plan.files, plan.settings, dataset=DATASET, problems=Problems()):
        assert with_masks(pickle.loads(pickle.dumps(record))) == with_masks(record)


def test_a_source_recognises_its_own_files_plain_and_packed_and_no_others(name, source, main_files, tmp_path):
    assert source.sniff(main_files[name])
    assert detect_format(main_files[name]) == name
    assert detect_format(packed(main_files[name], tmp_path / "packed")) == name
    for other in set(CORPORA) - {name}:
        assert not source.sniff(main_files[other]), f"{name} takes the file of {other} for its own"


def test_the_example_worked_out_by_hand_is_in_the_store(main_file, corpus, tmp_path):
    report = prepare(plan_of(main_file), Preparation(out=tmp_path / "store"))
    truth = corpus.truth
    store = Store(tmp_path / "store")
    assert sum(len(store.split(split)) for split in store.names()) == corpus.num_expressions
    assert report.problems.counts == corpus.problems
    assert not report.lost
    split = store.split(f"{DATASET}:{truth.split}")
    (example,) = [split[index] for index in range(len(split)) if split[index].id == truth.id]
    assert (example.expression, example.image_id) == (truth.expression, truth.image_id)
    assert (example.width, example.height) == truth.size
    assert tuple(region.box_xyxy for region in example.regions) == truth.boxes_xyxy
    for region, area in zip(example.regions, truth.mask_areas, strict=True):
        if area is None:
            assert region.mask is None
        else:
            assert region.mask.size == (HEIGHT, WIDTH)
            assert rle_area(region.mask) == pytest.approx(area, rel=AREA_TOLERANCE)
