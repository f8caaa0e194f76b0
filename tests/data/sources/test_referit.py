"""ReferItGame in the JSON files of Hu et al.: splits, inclusive boxes, inverted masks, and the published counts."""

import gzip
import json
import os
import pickle
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from refcli.data.sources.image_names import saiapr_image
from refcli.data.sources.record import Problems, RawExpression
from refcli.data.sources.referit import SOURCE, ReferitSettings
from refcli.errors import DataError
from refcli.geometry.masks import decode_mask, mask_box

BOXES = {"38685_1": [0, 0, 479, 132], "38685_2": [100, 50, 199, 99], "712_7": [81, 262, 205, 358]}
QUERIES = {
    "train": {"38685_1": ["sky"], "38685_2": ["-bridge", "the bridge"]},
    "val": {},
    "test": {"712_7": ["655"]},
}
SIZES = {"38685.jpg": [480, 360], "712.jpg": [360, 480]}

REAL = Path(os.environ.get("REFCLI_REALDATA", "")) / "referit_berkeley"
needs_real_data = pytest.mark.skipif(
    "REFCLI_REALDATA" not in os.environ or not REAL.is_dir(), reason="REFCLI_REALDATA has no referit_berkeley"
)


def files_in(folder, *, boxes=BOXES, queries=QUERIES, sizes=SIZES, write=Path.write_text):
    files = {"boxes": folder / "referit_bbox.json", "sizes": folder / "referit_imsize.json"}
    write(files["boxes"], json.dumps(boxes))
    write(files["sizes"], json.dumps(sizes))
    for split, regions in queries.items():
        files[split] = folder / f"referit_query_{split}.json"
        write(files[split], json.dumps(regions))
    return files


def read(files, **settings):
    problems = Problems()
    records = list(SOURCE.read(files, ReferitSettings(**settings), dataset="referit", problems=problems))
    return records, problems


def test_each_region_becomes_a_record_of_its_split_with_all_its_expressions(tmp_path):
    records, problems = read(files_in(tmp_path))
    assert [(r.split, r.image.key, r.expressions) for r in records] == [
        ("train", "saiapr:38685", (RawExpression("38685_1/0", "sky"),)),
        ("train", "saiapr:38685", (RawExpression("38685_2/0", "-bridge"), RawExpression("38685_2/1", "the bridge"))),
        ("test", "saiapr:712", (RawExpression("712_7/0", "655"),)),
    ]
    assert records[2].image == saiapr_image(712, width=360, height=480)
    assert records[2].image.names == ("712.jpg",)
    assert records[2].regions[0].source_id == "saiapr:712_7"
    assert not problems.counts


def test_the_far_edge_of_a_box_lies_behind_its_last_pixel(tmp_path):
    records, _ = read(files_in(tmp_path))
    assert records[0].regions[0].box_xyxy == (0, 0, 480, 133)
    assert records[1].regions[0].box_xyxy == (100, 50, 200, 100)


def test_the_boxes_of_transvg_are_one_pixel_short(tmp_path):
    records, _ = read(files_in(tmp_path), inclusive_boxes=False)
    assert records[1].regions[0].box_xyxy == (100, 50, 199, 99)


def test_compressed_files_read_as_plain_ones(tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "gz").mkdir()
    compressed = files_in(tmp_path / "gz", write=lambda path, text: path.write_bytes(gzip.compress(text.encode())))
    assert read(compressed)[0] == read(files_in(tmp_path / "plain"))[0]


def test_sizes_and_splits_may_be_absent_but_not_all_splits(tmp_path):
    files = files_in(tmp_path)
    records, _ = read({"boxes": files["boxes"], "test": files["test"]})
    assert [(r.split, r.image.width, r.image.height) for r in records] == [("test", None, None)]
    with pytest.raises(DataError, match="no expressions"):
        read({"boxes": files["boxes"]})


def test_images_that_refclef_lacks_are_left_out_only_on_request_and_counted_by_expression(tmp_path):
    boxes = {**BOXES, "19579_1": [0, 0, 9, 9]}
    queries = {"train": {"19579_1": ["a", "b"], "38685_1": ["sky"]}}
    files = files_in(tmp_path, boxes=boxes, queries=queries)
    kept, problems = read(files)
    assert [r.image.key for r in kept] == ["saiapr:19579", "saiapr:38685"]
    assert not problems.counts
    kept, problems = read(files, drop_missing_images=True)
    assert [r.image.key for r in kept] == ["saiapr:38685"]
    assert problems.counts == {"known_missing_image": 2}


def test_regions_without_a_box_or_an_expression_are_counted(tmp_path):
    queries = {"train": {"38685_1": [], "38685_2": ["bridge"], "38685_9": ["what"]}}
    records, problems = read(files_in(tmp_path, queries=queries))
    assert [r.expressions[0].id for r in records] == ["38685_2/0"]
    assert problems.counts == {"region_without_expression": 1, "region_without_box": 1}
    assert "38685_9" in problems.places["region_without_box"][0]


def test_an_image_in_two_splits_is_refused(tmp_path):
    queries = {"train": {"38685_1": ["sky"]}, "test": {"38685_2": ["bridge"]}}
    with pytest.raises(DataError, match=r"38685 is in train and in test"):
        read(files_in(tmp_path, queries=queries))


def test_an_image_that_the_list_of_its_split_lacks_is_refused(tmp_path):
    files = files_in(tmp_path)
    files["train_images"] = tmp_path / "referit_train_imlist.txt"
    files["train_images"].write_text("38685\n1\n")
    assert len(read(files)[0]) == 3
    files["train_images"].write_text("1\n")
    with pytest.raises(DataError, match="not in the list of images of train"):
        read(files)


def test_a_region_with_a_foreign_name_is_refused(tmp_path):
    with pytest.raises(DataError, match="not <image>_<region>"):
        read(files_in(tmp_path, queries={"train": {"38685": ["sky"]}}))


def save_inverted_mask(path, object_xyxy, *, shape):
    """As ReferItGame has it: 0 on the object (inclusive corners), 1 elsewhere."""
    x1, y1, x2, y2 = object_xyxy
    values = np.ones(shape, np.uint8)
    values[y1 : y2 + 1, x1 : x2 + 1] = 0
    savemat(path, {"segimg_t": values}, do_compression=True)


def test_the_object_of_a_mask_is_where_its_value_is_zero(tmp_path):
    files = files_in(tmp_path)
    files["masks"] = tmp_path / "mask"
    files["masks"].mkdir()
    save_inverted_mask(files["masks"] / "38685_2.mat", BOXES["38685_2"], shape=(360, 480))
    records, problems = read(files)
    region = records[1].regions[0]
    mask = pickle.loads(pickle.dumps(region.segmentation))()
    expected = np.zeros((360, 480), bool)
    expected[50:100, 100:200] = True
    assert np.array_equal(decode_mask(mask), expected)
    assert mask_box(mask) == region.box_xyxy
    assert problems.counts == {"mask_missing": 2}
    assert records[0].regions[0].segmentation is None


@pytest.mark.parametrize("prefix", ["mask/", "ReferitData/mask/", ""])
def test_masks_are_found_in_a_zip(tmp_path, prefix):
    files = files_in(tmp_path)
    save_inverted_mask(tmp_path / "712_7.mat", BOXES["712_7"], shape=(480, 360))
    files["masks"] = tmp_path / "masks.zip"
    with zipfile.ZipFile(files["masks"], "w") as archive:
        archive.write(tmp_path / "712_7.mat", f"{prefix}712_7.mat")
    records, _ = read(files)
    assert mask_box(records[2].regions[0].segmentation()) == records[2].regions[0].box_xyxy


def test_the_parent_of_the_mask_folder_may_be_given(tmp_path):
    files = files_in(tmp_path)
    (tmp_path / "mask").mkdir()
    save_inverted_mask(tmp_path / "mask" / "712_7.mat", BOXES["712_7"], shape=(480, 360))
    records, _ = read({**files, "masks": tmp_path})
    assert records[2].regions[0].segmentation() is not None


def test_a_tar_that_is_compressed_as_a_whole_is_refused_with_advice(tmp_path):
    files = files_in(tmp_path)
    save_inverted_mask(tmp_path / "712_7.mat", BOXES["712_7"], shape=(480, 360))
    for name, mode in (("mask.tar", "w"), ("mask.tar.gz", "w:gz")):
        with tarfile.open(tmp_path / name, mode) as archive:
            archive.add(tmp_path / "712_7.mat", "mask/712_7.mat")
    records, _ = read({**files, "masks": tmp_path / "mask.tar"})
    assert mask_box(records[2].regions[0].segmentation()) == records[2].regions[0].box_xyxy
    with pytest.raises(DataError, match="compressed as a whole") as caught:
        read({**files, "masks": tmp_path / "mask.tar.gz"})
    assert "unpack" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"other": np.ones((4, 4))}, "no variable segimg_t"),
        ({"segimg_t": np.ones((4, 4, 2))}, "not a matrix"),
        ({"segimg_t": np.array(["words"])}, "not a matrix|not hold numbers"),
        (b"MATLAB 5.0 MAT-file, cut short", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_a_broken_mask_is_named_when_it_is_read(tmp_path, content, complaint):
    files = files_in(tmp_path)
    files["masks"] = tmp_path / "mask"
    files["masks"].mkdir()
    path = files["masks"] / "712_7.mat"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        savemat(path, content)
    records, _ = read(files)
    with pytest.raises(DataError, match=complaint) as caught:
        records[2].regions[0].segmentation()
    assert "712_7.mat" in caught.value.where


def test_the_format_is_recognised_by_its_first_box(tmp_path):
    files = files_in(tmp_path)
    compressed = tmp_path / "other_name.json.gz"
    compressed.write_bytes(gzip.compress(files["boxes"].read_bytes()))
    assert SOURCE.sniff(files["boxes"])
    assert SOURCE.sniff(compressed)
    for foreign in (files["sizes"], files["train"], tmp_path, tmp_path / "absent.json"):
        assert not SOURCE.sniff(foreign)
    broken = tmp_path / "broken.gz"
    broken.write_bytes(compressed.read_bytes()[:12])
    assert not SOURCE.sniff(broken)


def real_files():
    return {
        role: REAL / name
        for role, names in SOURCE.files.items()
        for name in (*names, *(f"{name}.gz" for name in names))
        if (REAL / name).exists()
    }


@needs_real_data
@pytest.mark.parametrize(
    ("drop", "expressions"),
    [
        (False, {"train": 54134, "val": 5842, "test": 60105}),
        (True, {"train": 54127, "val": 5842, "test": 60103}),
    ],
)
def test_the_release_has_the_published_counts(drop, expressions):
    problems = Problems()
    settings = ReferitSettings(drop_missing_images=drop)
    found, regions, images, ids = Counter(), Counter(), {}, set()
    for record in SOURCE.read(real_files(), settings, dataset="referit", problems=problems):
        found[record.split] += len(record.expressions)
        regions[record.split] += 1
        images.setdefault(record.split, set()).add(record.image.key)
        ids.update(expression.id for expression in record.expressions)
    assert found == expressions
    assert len(ids) == sum(expressions.values())
    assert problems.counts == ({"known_missing_image": 9} if drop else {})
    if not drop:
        assert regions == {"train": 44649, "val": 4866, "test": 49730}
        assert {split: len(keys) for split, keys in images.items()} == {"train": 8995, "val": 1000, "test": 9994}


@needs_real_data
def test_regions_that_fill_their_image_touch_all_its_edges_and_no_box_leaves_it():
    whole = 0
    boxes = json.loads(gzip.decompress((REAL / "referit_bbox.json.gz").read_bytes()))
    sizes = json.loads(gzip.decompress((REAL / "referit_imsize.json.gz").read_bytes()))
    expected = sum(
        box == [0, 0, sizes[f"{name.split('_')[0]}.jpg"][0] - 1, sizes[f"{name.split('_')[0]}.jpg"][1] - 1]
        for name, box in boxes.items()
    )
    named = set()
    for record in SOURCE.read(real_files(), ReferitSettings(), dataset="referit", problems=Problems()):
        x1, y1, x2, y2 = record.regions[0].box_xyxy
        named.add(record.regions[0].source_id.removeprefix("saiapr:"))
        assert 0 <= x1 < x2 <= record.image.width
        assert 0 <= y1 < y2 <= record.image.height
        whole += (x1, y1, x2, y2) == (0, 0, record.image.width, record.image.height)
    unnamed = sum(
        boxes[name] == [0, 0, sizes[f"{name.split('_')[0]}.jpg"][0] - 1, sizes[f"{name.split('_')[0]}.jpg"][1] - 1]
        for name in boxes.keys() - named
    )
    assert expected == 1632
    assert whole == expected - unnamed
