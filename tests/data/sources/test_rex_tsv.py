"""Rex-Omni's tables: offsets lead to whole images, boxes share phrases, and damaged lines are listed."""

from __future__ import annotations

import base64
import json
import pickle

import pytest
from corpora.json_sets import LEFT, RIGHT, png, write_rex_tsv

from refcli.data.sources.record import Problems
from refcli.data.sources.rex_tsv import SOURCE
from refcli.errors import DataError


def read(folder, *rows, problems=None):
    """The records of a release, with other annotations if rows are given: each is an offset and its boxes."""
    write_rex_tsv(folder)
    return records_of(folder, *rows, problems=problems)


def records_of(folder, *rows, problems=None):
    main = folder / "mine_train.annotations.tsv"
    if rows:
        main.write_text("".join(f"{offset}\t{json.dumps({'boxes': boxes})}\n" for offset, boxes in rows))
    files = {"train": main, "images": folder / "mine_train.images.tsv"}
    problems = Problems() if problems is None else problems
    return list(SOURCE.read(files, SOURCE.settings(), dataset="mine", problems=problems))


def test_every_record_carries_the_image_at_its_offset_also_in_another_process(tmp_path):
    records = read(tmp_path)

    assert [record.image.content() for record in records] == [png("blue"), png("red"), png("red")]
    assert [record.image.names[0] for record in records] == ["b.png", "a.png", "a.png"]
    assert len({record.image.key for record in records}) == 2
    for record in records:
        assert pickle.loads(pickle.dumps(record)).image.content() == record.image.content()


def test_a_key_that_is_an_offset_names_no_file_and_base64_may_be_printed_bytes(tmp_path):
    read(tmp_path)
    path = tmp_path / "mine_train.images.tsv"
    path.write_bytes(b"0\tb'" + base64.b64encode(png("red")) + b"'\n")

    (record,) = records_of(tmp_path, (0, [{"bbox": LEFT, "phrase": "cup"}]))

    assert record.image.content() == png("red")
    assert record.image.names == (f"{record.image.key.removeprefix('mine:')}",)
    assert record.image.names[0].endswith(".png")


def test_a_phrase_without_a_box_has_no_target_unless_it_also_has_one(tmp_path):
    problems = Problems()
    boxes = [{"bbox": None, "phrase": "fork"}, {"bbox": LEFT, "phrase": "cup"}, {"bbox": None, "phrase": "cup"}]

    (record,) = read(tmp_path, (0, boxes), problems=problems)

    assert (record.expressions[0].text, record.regions) == ("fork", ())
    assert problems.counts == {"contradictory_phrase": 1}


@pytest.mark.parametrize(
    ("offset", "message"),
    [("x", "start with a byte offset"), (-1, "byte offset"), (7, "no image"), (10**9, "no image")],
)
def test_an_offset_that_is_not_the_start_of_an_image_is_refused(tmp_path, offset, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, (offset, [{"bbox": LEFT, "phrase": "cup"}]))


def test_a_phrase_with_an_unusable_box_is_left_out_with_all_its_boxes(tmp_path):
    problems = Problems()
    boxes = [{"bbox": LEFT, "phrase": "cup"}, {"bbox": [1, 2, 3], "phrase": "Cup "}, {"bbox": RIGHT, "phrase": "plate"}]
    rotated = {"bbox": LEFT, "phrase": "lamp", "angle": 30}

    records = read(tmp_path, (0, [*boxes, rotated]), (0, []), problems=problems)

    assert [record.expressions[0].text for record in records] == ["plate"]
    assert problems.counts == {"broken_box": 1, "rotated_box": 1, "image_without_phrase": 1, "unused_key": 1}


def test_the_phrases_of_humanref_cot_refer_to_boxes_with_width_and_height_by_number(tmp_path):
    read(tmp_path)
    main = tmp_path / "mine_train.annotations.tsv"
    boxes, regions = [[10, 20, 20, 40], [50, 20, 40, 40]], {"the women": [1, 0], "a man": []}
    main.write_text(f"0\t{json.dumps({'gt_boxes': boxes, 'region_map': regions, 'think': 'Person 1 ...'})}\n")

    women, man = records_of(tmp_path)

    assert [region.box_xyxy for region in women.regions] == [RIGHT, LEFT]
    assert (man.expressions[0].text, man.regions) == ("a man", ())
    main.write_text(f"0\t{json.dumps({'gt_boxes': boxes, 'region_map': {'the women': [2]}})}\n")
    with pytest.raises(DataError, match="refers to box 2 of 2"):
        records_of(tmp_path)


def test_boxes_in_fractions_are_refused(tmp_path):
    with pytest.raises(DataError, match="fractions"):
        read(tmp_path, (0, [{"bbox": [0, 0, 0.5, 1], "phrase": "cup"}]))


def test_an_image_that_is_not_base64_is_refused(tmp_path):
    read(tmp_path)
    (tmp_path / "mine_train.images.tsv").write_bytes(b"a.png\t????\n")

    with pytest.raises(DataError, match="not base64"):
        records_of(tmp_path, (0, [{"bbox": LEFT, "phrase": "cup"}]))
