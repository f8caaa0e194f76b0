"""Reading the lists of TransVG and OneRef: the form of boxes, and files that are not lists."""

import gzip
import json
import pickle
from collections import Counter
from pathlib import Path

import pytest
from pth_lists import (
    COCO,
    FLICKR,
    MIXUP_REFERIT,
    ONEREF,
    REALDATA,
    REFERIT,
    TRANSVG,
    XYWH,
    legacy,
    needs_real_data,
    read,
    torch_list,
)

from refcli.config.load import validate
from refcli.data.sources.pth.reader import MIN_BOXES_TO_DECIDE, SOURCE, PthSettings
from refcli.data.sources.record import Problems
from refcli.errors import ConfigError, DataError


def test_boxes_that_can_only_be_width_and_height_contradict_corners(tmp_path: Path):
    wrong = (*REFERIT[:2], [300, 10, 20, 99], *REFERIT[3:])
    for rows, settings in (([REFERIT, wrong], {}), ([ONEREF], {"boxes": "xyxy"})):
        with pytest.raises(DataError, match="can only be x, y, width, height") as caught:
            read(tmp_path, rows, **settings)
        assert str(caught.value.where).startswith(str(tmp_path / "set_val.pth"))
    records, _ = read(tmp_path, [REFERIT, wrong], boxes="xywh", inclusive_boxes=False)
    assert records[1].regions[0].box_xyxy == (300.0, 10.0, 320.0, 109.0)


def test_a_one_pixel_wide_inclusive_box_is_not_a_contradiction(tmp_path: Path):
    (record,), problems = read(tmp_path, [(FLICKR[0], [5, 0, 5, 9], "pole")])
    assert record.regions[0].box_xyxy == (5.0, 0.0, 6.0, 10.0)
    assert not problems.counts


def test_coco_boxes_that_all_look_like_corners_must_be_declared(tmp_path: Path):
    rows = [(COCO, f"{n}.pth", [10.0 + n, 10.0, 200.0 + n, 200.0], "boy", []) for n in range(MIN_BOXES_TO_DECIDE)]
    with pytest.raises(DataError, match="could be corners") as caught:
        read(tmp_path, rows)
    assert "boxes=xyxy" in str(caught.value.hint)
    records, problems = read(tmp_path, rows, boxes="xyxy")
    assert records[0].regions[0].box_xyxy == (10.0, 10.0, 200.0, 200.0)
    records, problems = read(tmp_path, rows, boxes="xywh")
    assert records[0].regions[0].box_xyxy == (10.0, 10.0, 210.0, 210.0)
    assert not problems.counts


def test_few_ambiguous_coco_boxes_have_the_usual_form_and_are_reported(tmp_path: Path):
    (record,), problems = read(tmp_path, [(COCO, "1.pth", [10.0, 10.0, 200.0, 200.0], "boy", [])])
    assert record.regions[0].box_xyxy == (10.0, 10.0, 210.0, 210.0)
    assert problems.counts == Counter(box_kind_assumed=1)


def test_own_images_need_boxes_that_are_proven_or_declared(tmp_path: Path):
    size = {"height": 9, "width": 9}
    row = ("trip/day 1.png", size, [1, 2, 7, 8], "the boat", None)
    with pytest.raises(DataError, match="may be corners or x, y, width, height"):
        read(tmp_path, [row])
    (record,), _ = read(tmp_path, [row], boxes="xyxy")
    assert record.image.key == "mine:trip/day 1.png"
    assert record.image.names == ("trip/day 1.png",)
    assert record.regions[0].box_xyxy == (1.0, 2.0, 7.0, 8.0)
    proven = ("a.png", size, [5, 5, 4, 4], "the boat", None)
    records, problems = read(tmp_path, [row, proven])
    assert records[0].regions[0].box_xyxy == (1.0, 2.0, 8.0, 10.0)
    assert not problems.counts


def test_the_family_can_be_declared_if_names_do_not_show_it(tmp_path: Path):
    row = ("trip.jpg", [1, 2, 7, 8], "the boat")
    with pytest.raises(DataError, match=r"'trip.jpg' is not the name of an image of flickr"):
        read(tmp_path, [row])
    (record,), _ = read(tmp_path, [row], images="own", boxes="xyxy")
    assert (record.image.key, record.regions[0].box_xyxy) == ("mine:trip.jpg", (1.0, 2.0, 7.0, 8.0))
    with pytest.raises(DataError, match=r"'8756.jpg' is not the name of an image of coco"):
        read(tmp_path, [REFERIT], images="coco")


def test_flickr_boxes_that_count_from_one_are_declared_and_suspected(tmp_path: Path):
    (record,), _ = read(tmp_path, [(FLICKR[0], [159, 110, 261, 373], "guys")], first_flickr_pixel=1)
    assert record.regions[0].box_xyxy == (158.0, 109.0, 261.0, 373.0)
    with pytest.raises(DataError, match="begins before pixel 1"):
        read(tmp_path, [FLICKR], first_flickr_pixel=1)
    from_one = [(FLICKR[0], [1, 1, 2 + n, 3], "guys") for n in range(MIN_BOXES_TO_DECIDE)]
    _, problems = read(tmp_path, from_one)
    assert problems.counts == Counter(first_flickr_pixel_may_be_1=1)
    _, problems = read(tmp_path, [*from_one, FLICKR])
    assert not problems.counts


@pytest.mark.parametrize("other", [ONEREF, FLICKR, MIXUP_REFERIT, (*ONEREF, 0.5)])
def test_layouts_that_do_not_belong_together_are_a_contradiction(tmp_path: Path, other: tuple[object, ...]):
    with pytest.raises(DataError, match="do not belong in one file") as caught:
        read(tmp_path, [TRANSVG, TRANSVG, other])
    assert caught.value.where == f"{tmp_path / 'set_val.pth'}: tuple 2"


@pytest.mark.parametrize(
    "row",
    [
        5,
        (),
        (COCO, XYWH),
        (*TRANSVG[:4],),
        (*TRANSVG, 0.5),
        (COCO, "511688.jpg", *TRANSVG[2:]),
        (COCO, None, *TRANSVG[2:]),
        (7, *TRANSVG[1:]),
        (*TRANSVG[:3], None, []),
        (*TRANSVG[:2], [1, 2, 3], "boy", []),
        (*TRANSVG[:2], [1, 2, 3, "4"], "boy", []),
        (*TRANSVG[:2], [1, 2, 3, True], "boy", []),
        (*TRANSVG[:2], [1, 2, 3, 10**400], "boy", []),
        (*TRANSVG[:2], None, "boy", []),
        ("9" * 5000 + ".jpg", *FLICKR[1:]),
    ],
)
def test_an_entry_of_no_known_layout_is_refused_by_its_number(tmp_path: Path, row: object):
    with pytest.raises(DataError) as caught:
        read(tmp_path, [row])
    assert str(caught.value.where).endswith("set_val.pth: tuple 0")
    records, problems = read(tmp_path, [row, FLICKR])
    assert (len(records), problems.counts["broken_row"]) == (1, 1)


@pytest.mark.parametrize("size", [{"height": 1}, {"height": "tall", "width": 2}, {"height": 100.5, "width": -1}])
def test_a_size_that_cannot_be_read_is_unknown(tmp_path: Path, size: dict[str, object]):
    records, _ = read(tmp_path, [ONEREF, (COCO, size, *ONEREF[2:])])
    assert [record.regions[0].box_xyxy for record in records] == [records[0].regions[0].box_xyxy] * len(records)
    assert not (records[-1].image.width and records[-1].image.height)


@pytest.mark.parametrize("content", [{"model": 1}, [], "text", None])
def test_a_file_that_holds_no_list_of_tuples_is_refused(tmp_path: Path, content: object):
    with pytest.raises(DataError, match="the file holds") as caught:
        read(tmp_path, content)
    assert caught.value.where == str(tmp_path / "set_val.pth")


def test_zip_legacy_json_and_gzip_hold_the_same_records(tmp_path: Path):
    rows = [TRANSVG, (COCO, "3.pth", [4.0, 5.0, 3.0, 2.0], "dog", [])]
    contents = {"a.pth": torch_list(rows), "b.pth": legacy(rows), "c.json": json.dumps(rows).encode()}
    contents |= {f"{name}.gz": gzip.compress(content) for name, content in contents.items()}
    regions = set()
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        assert SOURCE.sniff(path)
        records = SOURCE.read({"val": path}, PthSettings(), dataset="mine", problems=Problems())
        regions.add(tuple((one.image, one.expressions, one.regions) for one in records))
    assert len(regions) == 1
    assert len(regions.pop()) == 2


def test_every_split_is_read_from_its_own_file(tmp_path: Path):
    files = {split: tmp_path / f"{split}.pth" for split in ("train", "val")}
    files["train"].write_bytes(torch_list([TRANSVG]))
    files["val"].write_bytes(torch_list([FLICKR]))
    records = list(SOURCE.read(files, PthSettings(), dataset="mine", problems=Problems()))
    assert [(one.split, one.expressions[0].id) for one in records] == [("train", "0"), ("val", "0")]


def test_foreign_files_are_not_recognised_as_lists(tmp_path: Path):
    contents = {
        "checkpoint.pth": torch_list({"model": {}}),
        "refs.p": pickle.dumps([{"ref_id": 1}]),
        "instances.json": b'{"images": []}',
        "list.json": b'[{"image_id": 1}]',
        "empty": b"",
        "cut.pth": torch_list([TRANSVG])[:40],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert not SOURCE.sniff(tmp_path / name)
    assert not SOURCE.sniff(tmp_path / "absent")
    assert not SOURCE.sniff(tmp_path)


def test_an_unknown_setting_is_refused():
    with pytest.raises(ConfigError):
        validate(SOURCE.settings, {"inclusive": True}, where="settings")


@needs_real_data
@pytest.mark.parametrize(("name", "tuples", "images"), [("val", 7640, 4123), ("test", 3820, 2775)])
def test_real_transvg_lists_are_read_completely(name: str, tuples: int, images: int):
    path = Path(REALDATA) / "refcoco_transvg_pth" / f"my_{name}_split.pth"
    assert SOURCE.sniff(path)
    problems = Problems()
    records = list(SOURCE.read({name: path}, PthSettings(), dataset="mine", problems=problems))
    assert [one.id for record in records for one in record.expressions] == [str(index) for index in range(tuples)]
    assert len({record.image.key for record in records}) == images
    assert not problems.counts
    for record in records:
        (region,) = record.regions
        left, top, right, bottom = region.box_xyxy
        assert -1 < left < right < 641 and -1 < top < bottom < 641
        assert region.source_id.startswith("coco:")


@needs_real_data
def test_the_two_real_lists_share_the_images_that_are_known_to_be_in_both():
    folder = Path(REALDATA) / "refcoco_transvg_pth"
    files = {name: folder / f"my_{name}_split.pth" for name in ("val", "test")}
    images: dict[str, set[str]] = {"val": set(), "test": set()}
    for record in SOURCE.read(files, PthSettings(), dataset="mine", problems=Problems()):
        images[record.split].add(record.image.key)
    assert len(images["val"] & images["test"]) == 2017
