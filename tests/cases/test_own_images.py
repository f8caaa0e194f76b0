"""Custom images numbered like COCO's count as COCO images only if the data set, or number and size, show it."""

import json

import pytest
from PIL import Image

from refcli.data.sources.coco.instances import is_coco_url
from refcli.data.store.read import Store


def lines(path, *records):
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n")
    return path


def line(image, **fields):
    return {"image": image, "expression": f"the thing in {image}", "box": [1, 1, 20, 20], **fields}


def image_ids(store, split):
    return set(Store(store).split(split).column("image_id").to_pylist())


def test_equal_numbers_in_two_custom_folders_are_two_images(refcli, tmp_path):
    for folder, size in (("train", (100, 80)), ("val", (64, 48))):
        (tmp_path / "pics" / folder).mkdir(parents=True)
        Image.new("RGB", size, "red").save(tmp_path / "pics" / folder / "000000000001.jpg")
        width, height = size
        file = lines(tmp_path / f"{folder}.jsonl", line(f"{folder}/000000000001.jpg", width=width, height=height))
        code, _, messages = refcli(
            "prepare-data", "--from", file, "--name", "mine", "--images", tmp_path / "pics", "--out", tmp_path / "store"
        )
        assert code == 0, messages
    code, _, messages = refcli("audit", tmp_path / "store", "--fail-on-overlap")
    assert code == 0, messages
    assert image_ids(tmp_path / "store", "mine:train") == {"mine:train/000000000001.jpg"}


@pytest.mark.parametrize("folders", [("train2017", "val2017"), ("a", "b")])
def test_equal_numbers_and_sizes_of_two_custom_images_are_not_an_overlap(refcli, tmp_path, folders):
    for folder, split in zip(folders, ("train", "val"), strict=True):
        file = lines(tmp_path / f"{split}.jsonl", line(f"{folder}/000000000001.jpg", width=640, height=480))
        refcli("prepare-data", "--from", file, "--name", "mine", "--out", tmp_path / "store")
    code, _, messages = refcli("audit", tmp_path / "store", "--fail-on-overlap")
    assert code == 0, messages


def test_a_custom_image_of_a_wrong_size_is_left_out_whatever_its_name(refcli, tmp_path):
    (tmp_path / "pics").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "pics" / "000000000001.jpg")
    file = lines(tmp_path / "val.jsonl", line("000000000001.jpg", width=640, height=480))
    arguments = ("--from", file, "--name", "mine", "--images", tmp_path / "pics", "--out", tmp_path / "store")
    code, _, messages = refcli("prepare-data", *arguments)
    assert code == 5
    assert "no record of mine can be used" in messages


@pytest.mark.parametrize(
    ("own", "is_shared"),
    [
        (line("000000581857.jpg", width=640, height=427), True),
        (line("000000581857.jpg"), True),
        (line("000000581857.jpg", width=64, height=42), False),
        (line("COCO_train2014_000000581857.jpg", width=64, height=42), True),
        (line("x.jpg", image_id="coco:581857"), True),
        (line("000000581858.jpg", width=640, height=427), False),
    ],
)
def test_a_photograph_of_a_published_set_is_found_again_by_number_and_size(refcli, tmp_path, own, is_shared):
    published = line("COCO_train2014_000000581857.jpg", width=640, height=427)
    for name, split, record in (("refcoco", "val", published), ("mine", "train", own)):
        file = lines(tmp_path / f"{name}_{split}.jsonl", record)
        refcli("prepare-data", "--from", file, "--name", name, "--split", split, "--out", tmp_path / "store")
    code, out, _ = refcli("audit", tmp_path / "store", "--json")
    assert code == 0
    (overlap,) = json.loads(out)["overlaps"]
    assert overlap["shared_images"] == is_shared


def test_files_of_an_annotation_tool_are_custom_images(refcli, tmp_path):
    file = tmp_path / "val.json"
    rows = {
        "images": [{"id": 1, "file_name": "000000000001.jpg", "width": 64, "height": 48}],
        "annotations": [{"id": 1, "image_id": 1, "bbox": [1, 1, 5, 5], "expression": "the cup"}],
    }
    file.write_text(json.dumps(rows))
    refcli("prepare-data", "--from", file, "--name", "own", "--out", tmp_path / "store")
    assert image_ids(tmp_path / "store", "own:val") == {"own:000000000001.jpg"}
    rows["images"][0]["coco_url"] = "http://images.cocodataset.org/val2017/000000000001.jpg"
    file.write_text(json.dumps(rows))
    refcli("prepare-data", "--from", file, "--name", "address", "--out", tmp_path / "store")
    assert image_ids(tmp_path / "store", "address:val") == {"coco:1"}
    arguments = ("--from", file, "--out", tmp_path / "store", "--name")
    refcli("prepare-data", *arguments, "report", "--set", "images=coco")
    assert image_ids(tmp_path / "store", "report:val") == {"coco:1"}
    refcli("prepare-data", *arguments, "denied", "--set", "images=own")
    assert image_ids(tmp_path / "store", "denied:val") == {"denied:000000000001.jpg"}


def test_custom_refs_numbered_from_one_are_not_coco(refcli, tmp_path):
    ref = {"ref_id": 1, "ann_id": 1, "image_id": 1, "split": "val", "sentences": [{"sent": "cup", "raw": "Cup"}]}
    (tmp_path / "refs(unc).json").write_text(json.dumps([ref]))
    image = {"id": 1, "file_name": "000000000001.jpg", "width": 64, "height": 48}
    annotation = {"id": 1, "image_id": 1, "bbox": [1, 1, 5, 5], "category_id": 1}
    (tmp_path / "instances.json").write_text(json.dumps({"images": [image], "annotations": [annotation]}))
    refcli("prepare-data", "--from", tmp_path / "refs(unc).json", "--name", "own", "--out", tmp_path / "store")
    assert image_ids(tmp_path / "store", "own:val") == {"own:000000000001.jpg"}


def test_a_url_counts_only_on_the_coco_server_and_with_the_same_number():
    assert is_coco_url("http://images.cocodataset.org/train2017/000000391895.jpg", 391895)
    assert is_coco_url("http://mscoco.org/images/391895.jpg", "391895")
    assert not is_coco_url("http://images.cocodataset.org/train2017/000000391895.jpg", 7)
    assert not is_coco_url("http://example.org/train2017/000000391895.jpg", 391895)
    assert not is_coco_url(None, 391895)


def test_custom_lists_of_tuples_numbered_like_coco_are_not_coco(refcli, tmp_path):
    for name, about, expected in (
        ("000000000001.jpg", {"height": 48, "width": 64}, "mine:000000000001.jpg"),
        ("COCO_train2014_000000000009.jpg", {"height": 48, "width": 64}, "coco:9"),
        ("000000000009.jpg", "7.pth", "coco:9"),
    ):
        (tmp_path / "val.json").write_text(json.dumps([[name, about, [10, 20, 5, 6], "the cup", []]]))
        arguments = ("--from", tmp_path / "val.json", "--format", "pth", "--name", "mine", "--out", tmp_path / "store")
        code, _, messages = refcli("prepare-data", *arguments)
        assert code == 0, messages
        assert image_ids(tmp_path / "store", "mine:val") == {expected}
