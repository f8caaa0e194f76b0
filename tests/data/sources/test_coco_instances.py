"""Reading COCO's instances file."""

import gzip
import json
import tracemalloc

import numpy as np
import pytest

from refcli.data.preparation.finish import region_mask
from refcli.data.sources.coco.instances import coco_region, read_instances
from refcli.data.sources.image_names import coco_image
from refcli.errors import DataError
from refcli.geometry.masks import encode_mask

TRIANGLE = [[1.5, 2, 30, 2.25, 30, 20]]


def annotation(number, image, **fields):
    row = {"id": number, "image_id": image, "category_id": 5, "bbox": [1.5, 2, 28.5, 18], "iscrowd": 0}
    return {**row, "segmentation": TRIANGLE, **fields}


def image(number, **fields):
    return {"id": number, "file_name": f"COCO_train2014_{number:012d}.jpg", "width": 40, "height": 30, **fields}


def write(path, images, annotations, **rest):
    path.write_text(json.dumps({"images": images, "annotations": annotations, **rest}))
    return path


def test_images_annotations_and_categories_are_read_by_id(tmp_path):
    path = write(tmp_path / "instances.json", [image(9)], [annotation(77, 9)], categories=[{"id": 5, "name": "dog"}])
    read = read_instances(path)
    assert read.images[9] == (9, "COCO_train2014_000000000009.jpg", 40, 30)
    assert read.annotations[77].bbox == (1.5, 2.0, 28.5, 18.0)
    assert read.categories == {5: "dog"}


def test_the_segmentation_stays_undecoded(tmp_path):
    text = b"[[1.50, 2.00,30.10000000000000001,2,  30,20]]"
    row = b'{"id":7,"image_id":9,"bbox":[0,0,1,1],"segmentation":' + text + b"}"
    path = tmp_path / "instances.json"
    path.write_bytes(b'{"images":[{"id":9,"width":40,"height":30}],"annotations":[' + row + b"]}")
    assert read_instances(path).annotations[7].segmentation == text


def test_a_gzipped_file_reads_like_the_plain_one(tmp_path):
    plain = write(tmp_path / "instances.json", [image(9)], [annotation(77, 9)])
    packed = tmp_path / "instances.json.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_instances(packed) == read_instances(plain)


def test_only_requested_rows_are_kept(tmp_path):
    path = write(tmp_path / "i.json", [image(1), image(2)], [annotation(10, 1), annotation(20, 2), annotation(21, 2)])
    of_image = read_instances(path, image_ids=[2])
    assert (set(of_image.images), set(of_image.annotations)) == ({2}, {20, 21})
    listed = read_instances(path, image_ids=[2], annotation_ids=[10, 20])
    assert (set(listed.images), set(listed.annotations)) == ({2}, {10, 20})
    assert read_instances(path, image_ids=[]).annotations == {}


def test_ids_may_be_strings_and_other_parts_may_be_missing_or_empty(tmp_path):
    path = tmp_path / "fork.json"
    row = {"id": "007", "image_id": "9", "bbox": ["1", 2, 3, 4], "iscrowd": False}
    path.write_text(json.dumps({"info": [], "images": [{"id": "000009"}], "annotations": [row]}))
    read = read_instances(path)
    assert read.images[9].width is None
    assert read.annotations[7] == (7, 9, 0, (1.0, 2.0, 3.0, 4.0), 0, b"")


@pytest.mark.parametrize("nothing", [None, [], {}, ""])
def test_an_empty_segmentation_is_not_a_mask(tmp_path, nothing):
    path = write(tmp_path / "i.json", [image(9)], [annotation(7, 9, segmentation=nothing)])
    read = read_instances(path).annotations[7]
    assert read.segmentation == b""
    assert coco_region(read).segmentation is None


def test_crowds_are_flagged_and_keep_their_run_lengths(tmp_path):
    runs = {"counts": [100, 20, 1080], "size": [30, 40]}
    path = write(tmp_path / "i.json", [image(9)], [annotation(7, 9, iscrowd=1, segmentation=runs)])
    crowd = read_instances(path).annotations[7]
    assert crowd.iscrowd == 1
    assert json.loads(crowd.segmentation) == runs


def test_lists_of_run_lengths_of_refclef_reach_the_mask(tmp_path):
    mask = encode_mask(np.arange(1200).reshape(30, 40) % 40 < 7)
    runs = [{"counts": mask.counts.decode("ascii"), "size": [30, 40]}]
    path = write(tmp_path / "i.json", [image(9)], [annotation(7, 9, segmentation=runs)])
    region = coco_region(read_instances(path).annotations[7])
    assert region_mask(region, 30, 40) == mask


def test_a_region_has_the_far_corner_of_its_box_and_the_annotations_identity(tmp_path):
    path = write(tmp_path / "i.json", [image(9)], [annotation(7, 9)])
    read = read_instances(path).annotations[7]
    assert coco_region(read).box_xyxy == (1.5, 2.0, 30.0, 20.0)
    assert coco_region(read).source_id == "coco:7"
    assert coco_region(read, family="my_set").source_id == "my_set:7"


def test_an_image_has_its_2014_and_2017_names():
    photograph = coco_image(581857, width=640, height=427)
    assert photograph.key == "coco:581857"
    assert photograph.names == (
        "COCO_train2014_000000581857.jpg",
        "000000581857.jpg",
        "COCO_val2014_000000581857.jpg",
    )
    assert (photograph.width, photograph.height) == (640, 427)


def test_two_different_rows_with_one_id_are_an_error_and_a_repeated_row_is_not(tmp_path):
    twice = write(tmp_path / "twice.json", [image(9), image(9)], [annotation(7, 9), annotation(7, 9)])
    assert len(read_instances(twice).annotations) == 1
    moved = write(tmp_path / "moved.json", [image(9)], [annotation(7, 9), annotation(7, 9, bbox=[0, 0, 1, 1])])
    with pytest.raises(DataError, match="two different annotations have the id 7") as caught:
        read_instances(moved)
    assert caught.value.where == f"{moved}: annotations[1]"
    resized = write(tmp_path / "resized.json", [image(9), image(9, width=41)], [])
    with pytest.raises(DataError, match="two different images have the id 9"):
        read_instances(resized)


@pytest.mark.parametrize(
    "row", [{"id": ["seven"]}, {"bbox": [1, 2, 3]}, {"bbox": None}, {"image_id": [9]}, {"iscrowd": "many"}]
)
def test_a_row_of_another_shape_is_an_error_that_names_it(tmp_path, row):
    path = write(tmp_path / "i.json", [image(9)], [annotation(1, 9), annotation(7, 9, **row)])
    with pytest.raises(DataError) as caught:
        read_instances(path)
    assert caught.value.where == f"{path}: annotations[1]"


@pytest.mark.parametrize("text", ["[]", '{"images": {}, "annotations": []}', '{"images": [', ""])
def test_a_file_of_another_format_is_an_error(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(DataError):
        read_instances(path)


def test_rows_that_are_not_kept_take_no_memory(tmp_path):
    rows = [annotation(number, number // 4, segmentation=TRIANGLE * 30) for number in range(4_000)]
    path = write(tmp_path / "i.json", [image(number) for number in range(1_000)], rows)
    size = path.stat().st_size
    assert size > 3_000_000
    del rows
    tracemalloc.start()
    read = read_instances(path, image_ids=[3])
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(read.annotations) == 4
    assert kept < size / 20
    assert peak < size * 2.5
