"""Parquet: layouts, columns by name, images inside, and files that are not what they seem."""

import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import HEIGHT, WIDTH
from corpora.json_sets import text_mask
from image_files import COCO, png_bytes
from parquet_releases import (
    LEFT,
    RIGHT,
    grounding_me_row,
    image,
    lmms_row,
    pbench_row,
    polygon,
    sentence,
    write_parquet,
    xywh,
)

from refcli.data.preparation.dataset_images import extract_content
from refcli.data.preparation.plan import plan_file, plan_named, with_files
from refcli.data.reading.images import read_image
from refcli.data.sources.parquet.images import StoredImages
from refcli.data.sources.record import Problems
from refcli.data.store.read import Store
from refcli.errors import DataError, UsageError
from refcli.recipes.prepare_data import Preparation, prepare

OWN = {"columns": {"image": "image", "expression": "text", "box": "box"}, "box_format": "xyxy"}


def own_row(number=0, text="the cup", box=LEFT, **fields):
    return {"image": image(number), "text": text, "box": list(box), **fields}


def store_of(tmp_path, rows, *, settings=OWN, schema=None, images=(), file="mine_test.parquet", **options):
    """Prepare the rows of a file; returns its examples, the store's split, and the problems."""
    path = tmp_path / "raw" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), path, **options)
    plan = plan_file(path, name="mine", overrides=settings)
    report = prepare(plan, Preparation(out=tmp_path / "store", images=images, force=True))
    (name,) = Store(tmp_path / "store").names()
    split = Store(tmp_path / "store").split(name)
    return [split[index] for index in range(len(split))], split, report.problems


def image_files(tmp_path):
    return sorted(path.name for path in (tmp_path / "store" / "mine" / "images").rglob("*.*"))


def test_columns_are_named_in_the_settings(tmp_path):
    rows = [
        {"id": 7, "pic": png_bytes((WIDTH, HEIGHT)), "texts": ["left", "left one"], "xywh": xywh(LEFT), "none": False},
        {"id": 8, "pic": png_bytes((WIDTH, HEIGHT)), "texts": ["a fork"], "xywh": None, "none": True},
        {"id": 9, "pic": png_bytes((WIDTH, HEIGHT)), "texts": ["no box"], "xywh": None, "none": False},
        {"id": 10, "pic": png_bytes((WIDTH, HEIGHT)), "texts": ["a short box"], "xywh": [1.0, 2.0], "none": None},
    ]
    columns = {"id": "id", "image": "pic", "expression": "texts", "box": "xywh", "no_target": "none"}

    examples, _, problems = store_of(tmp_path, rows, settings={"columns": columns, "box_format": "xywh"})

    assert [(one.id, one.expression, len(one.regions)) for one in examples] == [
        ("mine/7/0", "left", 1), ("mine/7/1", "left one", 1), ("mine/8/0", "a fork", 0),
    ]  # fmt: skip
    assert examples[0].regions[0].box_xyxy == LEFT
    assert problems.counts == {"broken_row": 2}


def test_rows_without_ids_are_numbered_over_all_files_of_their_split(tmp_path):
    for part in range(2):
        write_parquet(tmp_path / "raw" / f"val-0000{part}-of-00002.parquet", [own_row(), own_row(text="a cup")])

    prepare(plan_file(tmp_path / "raw", name="mine", overrides=OWN), Preparation(out=tmp_path / "store"))

    ids = Store(tmp_path / "store").split("mine:val").column("id").to_pylist()
    assert ids == ["mine/val/1", "mine/val/2", "mine/val/3", "mine/val/4"]


def test_an_id_that_a_row_repeats_gets_the_number_of_the_row(tmp_path):
    rows = [lmms_row(number, LEFT, "a", coco=number) for number in (5, 5, 200_000_000, 200_000_000)]

    examples, _, problems = store_of(tmp_path, rows, settings={}, file="test.parquet")

    assert [one.id for one in examples] == ["mine/5/0", "mine/5/0-2", "mine/200000000/0", "mine/200000000/0-4"]
    assert problems.counts == {"repeated_id": 2}


def test_several_boxes_and_masks_of_a_row_are_its_regions_in_order(tmp_path):
    columns = {"image": "image", "expression": "text", "box": "boxes", "mask": "masks"}
    row = {"image": image(), "text": "both", "boxes": [list(LEFT), list(RIGHT)]}
    masks = [text_mask(LEFT), text_mask(RIGHT)]

    examples, _, problems = store_of(
        tmp_path, [{**row, "masks": masks}, {**row, "masks": masks[:1]}], settings={**OWN, "columns": columns}
    )

    assert [region.box_xyxy for region in examples[0].regions] == [LEFT, RIGHT]
    assert all(region.mask for region in examples[0].regions)
    assert problems.counts == {"broken_row": 1}


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"columns": {"image": "image", "expression": "text", "box": "box"}}, "box_format"),
        ({**OWN, "columns": {**OWN["columns"], "expression": "txt"}}, "columns.expression"),
        ({**OWN, "columns": {"expression": "text", "box": "box"}}, "columns.image"),
        ({**OWN, "columns": {"expression": "text", "image": "image"}}, "columns.box"),
        ({}, "mine_test.parquet"),
    ],
)
def test_incomplete_settings_are_usage_errors(tmp_path, settings, where):
    with pytest.raises(UsageError) as caught:
        store_of(tmp_path, [own_row()], settings=settings)
    assert where in caught.value.where
    assert caught.value.hint


def test_every_row_has_its_own_image_across_row_groups_and_equal_ones_are_written_once(tmp_path):
    colours = [3, 3, 0, 1, 2, 1, 40, *range(41, 60)]

    examples, split, _ = store_of(tmp_path, [own_row(colour) for colour in colours], row_group_size=18)

    assert [read_image(split.image_path(one))[0, 0, 0] for one in examples] == colours
    assert {(one.width, one.height) for one in examples} == {(WIDTH, HEIGHT)}
    assert len(image_files(tmp_path)) == len(set(colours)) == len({one.image_id for one in examples})
    before = image_files(tmp_path)
    store_of(tmp_path, [own_row(colour) for colour in colours], row_group_size=5)
    assert image_files(tmp_path) == before


def test_one_name_for_two_images_gives_two_files_and_no_file_is_replaced(tmp_path):
    first, second = lmms_row(1, LEFT, "one"), {**lmms_row(2, LEFT, "two"), "image": image(9)}

    examples, split, _ = store_of(tmp_path, [first, second], settings={}, file="val.parquet")

    assert [read_image(split.image_path(one))[0, 0, 0] for one in examples] == [0, 9]
    assert examples[0].image == "images/coco/COCO_train2014_000000000001.jpg"
    store_of(tmp_path, [second], settings={}, file="val.parquet")
    assert read_image(split.image_path(examples[0]))[0, 0, 0] == 0


def test_a_broken_image_and_a_path_out_of_the_folder_leave_out_one_row_each(tmp_path):
    rows = [
        own_row(1, image={"bytes": b"not an image", "path": None}),
        own_row(2, image=image(2, path="../../../escaped.png")),
        own_row(3, image={"bytes": None, "path": "../../escaped.png"}),
        own_row(4, image={"bytes": None, "path": None}),
    ]

    examples, split, problems = store_of(tmp_path, rows)

    assert [one.id for one in examples] == ["mine/test/2"]
    assert split.image_path(examples[0]).resolve().is_relative_to(tmp_path / "store" / "mine")
    assert problems.counts == {"unusable_picture": 1, "broken_row": 2}
    assert not list(tmp_path.rglob("escaped*"))


@pytest.mark.parametrize(
    ("file", "settings", "split", "kinds"),
    [
        ("mine_val.parquet", {}, "val", set()),
        ("focus-00000-of-00001.parquet", {}, "focus", set()),
        ("validation-00000-of-00001.parquet", {}, "val", set()),
        ("mine.parquet", {}, "train", {"read_as_train"}),
        ("mine_val.parquet", {"split": "test"}, "test", set()),
        ("mine_val.parquet", {"splits": {"val": "val_mixed"}}, "val_mixed", set()),
        ("mine_val.parquet", {"columns": {**OWN["columns"], "split": "part"}}, "testA", set()),
    ],
)
def test_the_split_is_that_of_the_settings_else_of_a_column_else_of_the_name(tmp_path, file, settings, split, kinds):
    unused = set() if "columns" in settings else {"unused_key"}

    _, found, problems = store_of(tmp_path, [own_row(part="testA")], settings={**OWN, **settings}, file=file)

    assert found.name == f"mine:{split}"
    assert set(problems.counts) == kinds | unused


def test_images_can_stay_in_their_folder(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(png_bytes((WIDTH, HEIGHT)))
    rows = [own_row(image={"bytes": png_bytes((WIDTH, HEIGHT), "blue"), "path": "a.png"})]

    examples, split, _ = store_of(
        tmp_path, rows, settings={**OWN, "extract_images": False}, images=(tmp_path / "photos",)
    )
    assert split.image_path(examples[0]) == tmp_path / "photos" / "a.png"
    assert not (tmp_path / "store" / "mine" / "images").exists()

    rows.append(own_row(image={"bytes": None, "path": "a.png"}))
    examples, split, _ = store_of(tmp_path, rows, images=(tmp_path / "photos",))
    blue, red = (read_image(split.image_path(one))[0, 0].tolist() for one in examples)
    assert (blue, red) == ([0, 0, 255], [255, 0, 0])


def test_a_search_for_names_reads_no_image_inside(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "test.parquet", [own_row(1), own_row(2)])
    plan = plan_file(path, name="mine", overrides=OWN)
    monkeypatch.setattr(StoredImages, "read", lambda *place: pytest.fail("an image was read"))

    assert list(plan.source.read_names(plan.files, plan.settings, dataset="mine", problems=None)) == []


@pytest.mark.parametrize(
    "kind",
    [
        pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())]),
        pa.large_binary(),
        pa.dictionary(pa.int32(), pa.binary()),
    ],
    ids=str,
)
def test_large_and_dictionary_columns_are_read_alike(tmp_path, kind):
    content = png_bytes((WIDTH, HEIGHT))
    value = {"bytes": content, "path": None} if pa.types.is_struct(kind) else content
    text = pa.dictionary(pa.int8(), pa.large_string())
    schema = pa.schema([("image", kind), ("text", text), ("box", pa.large_list(pa.float32()))])
    table = pa.table([pa.array([value] * 2).cast(kind), pa.array(["cup"] * 2).cast(text), [list(LEFT)] * 2], schema)
    path = tmp_path / "test.parquet"
    pq.write_table(table, path)

    prepare(plan_file(path, name="mine", overrides=OWN), Preparation(out=tmp_path / "store"))

    example = Store(tmp_path / "store").split("mine:test")[1]
    assert (example.expression, example.regions[0].box_xyxy) == ("cup", LEFT)
    assert len(image_files(tmp_path)) == 1


def test_an_image_column_of_another_type_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no images but list"):
        store_of(tmp_path, [own_row(image=[[1, 2], [3, 4]])])


def test_a_truncated_file_a_missing_part_a_pointer_and_a_file_of_a_store_are_refused(tmp_path):
    whole = write_parquet(tmp_path / "whole.parquet", [own_row()]).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-40])
    with pytest.raises(UsageError, match="it is a Parquet file"):
        plan_file(tmp_path / "cut.parquet", name="mine")
    with pytest.raises(DataError, match="cannot be read"):
        prepare(plan_file(tmp_path / "cut.parquet", name="mine", form="parquet"), Preparation(tmp_path / "store"))

    write_parquet(tmp_path / "parts" / "val-00001-of-00002.parquet", [lmms_row(1, LEFT, "a")])
    with pytest.raises(DataError, match="1 of its 2 files"):
        prepare(plan_file(tmp_path / "parts", name="mine"), Preparation(out=tmp_path / "store"))

    (tmp_path / "cloned").mkdir()
    (tmp_path / "cloned" / "val.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1")
    with pytest.raises(DataError, match="Git LFS pointer"):
        prepare(plan_file(tmp_path / "cloned", name="mine"), Preparation(out=tmp_path / "store"))

    store_of(tmp_path, [own_row()])
    with pytest.raises(DataError, match="already prepared"):
        prepare(plan_file(tmp_path / "store" / "mine", name="again"), Preparation(out=tmp_path / "other"))


def test_rows_with_a_column_that_changes_their_meaning_are_left_out_and_others_reported(tmp_path):
    rows = [lmms_row(number, LEFT, "a") | {"exist": number == 1, "note": "x"} for number in (1, 2)]

    examples, _, problems = store_of(tmp_path, rows, settings={}, file="test.parquet")

    assert [one.id for one in examples] == ["mine/1/0"]
    assert problems.counts == {"unread_meaning": 1, "unused_key": 2}


def test_only_the_row_that_is_not_utf8_is_left_out(tmp_path):
    texts = pa.array([b"good", b"\xff\xfe", b"also good"], pa.binary()).view(pa.string())
    images = pa.array([image()] * 3)
    table = pa.table({"image": images, "text": texts, "box": [list(LEFT)] * 3})
    pq.write_table(table, tmp_path / "test.parquet")

    report = prepare(plan_file(tmp_path / "test.parquet", name="mine", overrides=OWN), Preparation(tmp_path / "store"))

    assert report.problems.counts == {"broken_row": 1}
    assert report.splits[0].examples == 2


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (pbench_row(2, "cups", LEFT, RIGHT) | {"count": 3}, "count is 3, but there are 2 masks"),
        (grounding_me_row(2, "Refusal", "Text", LEFT), "subtask_l1 is 'Refusal'"),
    ],
    ids=["PBench", "GroundingME"],
)
def test_a_row_that_contradicts_its_layout_is_listed(tmp_path, row, reason):
    good = pbench_row(1, "cup", LEFT) if "masks" in row else grounding_me_row(1, "Limited", "Small", RIGHT)

    examples, _, problems = store_of(tmp_path, [good, row], settings={})

    assert len(examples) == 1
    assert reason in problems.places["broken_row"][0]


def test_a_ref_is_read_with_the_box_and_mask_of_its_annotation(tmp_path):
    annotation = {"id": 5, "bbox": xywh(LEFT), "segmentation": [polygon(LEFT)], "iscrowd": 0}
    row = {
        "ref_id": 3, "image_id": 1, "ann_id": 5, "split": "testA", "sentences": [sentence(8, "Left")],
        "raw_anns": json.dumps(annotation), "raw_image_info": json.dumps({"width": WIDTH, "height": HEIGHT}),
    }  # fmt: skip
    rows = [row | {"bbox": xywh(LEFT)}, row | {"bbox": list(LEFT), "ref_id": 4}, row | {"bbox": [1, 2, 3, 4.0]}]

    examples, split, problems = store_of(tmp_path, rows, settings={}, file="test-00000-of-00001.parquet")

    assert split.name == "mine:testA"
    assert [(one.id, one.expression) for one in examples] == [("mine/3/8", "left"), ("mine/4/8", "left")]
    assert {one.regions[0].box_xyxy for one in examples} == {LEFT}
    assert all(one.regions[0].mask for one in examples)
    assert problems.counts == {"broken_row": 1}


def test_rows_whose_split_is_in_a_column_are_numbered_over_all_files(tmp_path):
    for name in ("train", "val"):
        write_parquet(tmp_path / "raw" / f"{name}.parquet", [own_row(part="test"), own_row(part="dev")])
    settings = {**OWN, "columns": {**OWN["columns"], "split": "part"}}
    plan = plan_file(tmp_path / "raw", name="mine", overrides=settings)

    records = plan.source.read(plan.files, plan.settings, dataset="mine", problems=Problems())

    assert [one.expressions[0].id for one in records] == ["test/1", "dev/2", "test/3", "dev/4"]


def test_a_split_of_two_papers_is_reported_unless_it_is_renamed(tmp_path):
    _, _, problems = store_of(tmp_path, [lmms_row(1, LEFT, "left")], settings={}, file="val.parquet")
    assert problems.counts == {"split_of_two_papers": 1}

    renamed = {"splits": {"val": "val_mixed"}}
    _, split, problems = store_of(
        tmp_path / "renamed", [lmms_row(1, LEFT, "left")], settings=renamed, file="val.parquet"
    )
    assert (split[0].split, problems.counts) == ("val_mixed", {})


def test_refs_give_the_split_of_one_paper_within_a_mixed_one(tmp_path):
    rows = [lmms_row(1, LEFT, "left"), lmms_row(2, RIGHT, "right"), lmms_row(3, LEFT, "left")]
    write_parquet(tmp_path / "raw" / "RefCOCO" / "data" / "val-00000-of-00001.parquet", rows)
    boxes = {11: LEFT, 12: RIGHT}
    annotations = [{"id": one, "image_id": 1, "category_id": 1, "bbox": xywh(box)} for one, box in boxes.items()]
    images = [{"id": 1, "file_name": "COCO_train2014_000000000001.jpg", "width": WIDTH, "height": HEIGHT}]
    (tmp_path / "instances.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": []})
    )
    refs = [
        {"ref_id": one, "ann_id": one, "image_id": 1, "split": split, "sentences": [sentence(one, "x")]}
        for one, split in ((11, "val"), (12, "train"))
    ]
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    plan = with_files(
        plan_named("lmms_refcoco", raw=tmp_path / "raw"),
        {"refs": tmp_path / "refs(unc).p", "instances": tmp_path / "instances.json"},
    )

    prepare(plan, Preparation(out=tmp_path / "store"))

    store = Store(tmp_path / "store")
    splits = {name: store.split(f"lmms_refcoco:{name}") for name in ("val_mixed", "val_unc")}
    assert {name: len(split) for name, split in splits.items()} == {"val_mixed": 3, "val_unc": 1}
    assert splits["val_unc"][0].id == "lmms_refcoco/1/0"


def test_a_small_file_that_stands_for_much_memory_is_refused(tmp_path):
    num_rows = 1_000
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * num_rows, pa.int32()), pa.array(["x" * 400_000]))
    table = pa.table({"image": [b""] * num_rows, "text": texts, "box": [list(LEFT)] * num_rows})
    pq.write_table(table, tmp_path / "test.parquet")
    assert (tmp_path / "test.parquet").stat().st_size < 100_000

    with pytest.raises(DataError, match=r"1000 rows take 4\d\d,"):
        prepare(plan_file(tmp_path / "test.parquet", name="mine", overrides=OWN), Preparation(tmp_path / "store"))


def test_an_image_beyond_the_limit_is_not_written(tmp_path):
    content = png_bytes((WIDTH, HEIGHT))

    with pytest.raises(DataError, match="bytes"):
        extract_content(COCO, lambda: content, tmp_path, max_bytes=len(content) - 1)
    assert list(tmp_path.iterdir()) == []
    assert extract_content(COCO, lambda: content, tmp_path, max_bytes=len(content)).read_bytes() == content
