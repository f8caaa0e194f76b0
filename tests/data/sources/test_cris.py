"""CRIS's layout: one list of entries per split, and a mask file per entry."""

import pytest
from corpora.refer_sets import LEFT, RIGHT, cris_entry, write_cris, write_json, write_mask

from refcli.data.preparation.finish import region_mask
from refcli.data.preparation.plan import plan_file
from refcli.data.sources.record import Problems
from refcli.errors import DataError


def read(file, **settings):
    plan = plan_file(file, name="tiny", overrides=settings)
    problems = Problems()
    return list(plan.source.read(plan.files, plan.settings, dataset="tiny", problems=problems)), problems


def test_masks_are_found_in_the_folder_of_the_layout_and_must_be_there_unless_only_boxes_are_wanted(tmp_path):
    file = write_cris(tmp_path, "anns/refcoco/val.json", "masks/refcoco")
    records, _ = read(file)
    assert [(record.image.width, record.image.height) for record in records] == [(100, 80)] * 3

    (tmp_path / "masks").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="the masks are missing") as caught:
        read(file)
    assert "--set masks=false" in caught.value.hint
    records, _ = read(file, masks=False)
    assert [record.regions[0].box_xyxy for record in records[:2]] == [LEFT, (60.0, 20.0, 90.0, 70.0)]
    assert all(region.segmentation is None for record in records for region in record.regions)


def test_an_entry_without_a_mask_file_keeps_its_box_and_a_name_outside_the_folder_finds_none(tmp_path):
    write_mask(tmp_path / "outside.png", LEFT)
    write_mask(tmp_path / "masks" / "1.png", LEFT)
    entries = [cris_entry(1, LEFT, "left"), cris_entry(2, RIGHT, "right") | {"segment_id": "../outside"}]
    records, problems = read(write_json(tmp_path / "val.json", entries))
    assert [region.segmentation is None for record in records for region in record.regions] == [False, True]
    assert problems.counts == {"mask_missing": 1}


def test_a_damaged_mask_is_an_error_of_that_mask_only(tmp_path):
    file = write_cris(tmp_path)
    (tmp_path / "masks" / "1.png").write_bytes((tmp_path / "masks" / "1.png").read_bytes()[:60])
    records, _ = read(file)
    assert region_mask(records[1].regions[0], 80, 100) is not None
    with pytest.raises(DataError, match="cannot be decoded"):
        region_mask(records[0].regions[0], 80, 100)
