"""aRefCOCO: an entity gets the object of the ref that it names, and files that do not fit each other are noticed."""

import json

import pytest
from corpora.refer_sets import LEFT, ref, sentence, write_arefcoco, write_pickle, xywh

from refcli.data.preparation.plan import plan_file
from refcli.data.sources.record import Problems
from refcli.errors import DataError


def read(file, **beside):
    plan = plan_file(file, name="tiny", beside=beside)
    problems = Problems()
    return list(plan.source.read(plan.files, plan.settings, dataset="tiny", problems=problems)), problems


def entity(number, original, **fields):
    row = {"entity_id": number, "split": "test", "ref_id": 5, "original_dataset": original, "descriptions": ["It"]}
    return {**row, **fields}


def test_refs_of_googles_splits_are_refused_because_they_number_the_refs_differently(tmp_path):
    file = write_arefcoco(tmp_path)
    google = write_pickle(tmp_path / "refs(google).p", [ref(5, 11, "val", sentence(0, "left"))])

    with pytest.raises(DataError, match="not the refs of RefCOCOg's umd splits") as caught:
        read(file, refcocog=google, refcocog_instances=tmp_path / "refcocog/instances.json")

    assert "refs(umd).p" in caught.value.hint


def test_a_box_that_is_neither_reading_of_the_refs_box_is_reported_and_the_entity_kept(tmp_path):
    file = write_arefcoco(tmp_path)
    boxes = [xywh(LEFT), list(LEFT), [40, 40, 10, 10]]
    file.write_text(
        json.dumps({"annotations": [entity(number, "refcoco", bbox=box) for number, box in enumerate(boxes)]})
    )

    records, problems = read(file)

    assert [record.regions[0].box_xyxy for record in records] == [LEFT] * 3
    assert problems.counts == {"box_differs_from_instances": 1}
    assert "entity 2" in problems.places["box_differs_from_instances"][0]


def test_an_entity_of_another_data_set_is_left_out_and_an_entity_that_occurs_twice_refuses_the_file(tmp_path):
    file = write_arefcoco(tmp_path)
    rows = [entity(1, "refcoco"), entity(2, "refcoco+")]
    file.write_text(json.dumps({"annotations": rows}))
    records, problems = read(file)
    assert len(records) == 1
    assert problems.counts == {"broken_row": 1}

    file.write_text(json.dumps({"annotations": [*rows, entity(1, "refcocog")]}))
    with pytest.raises(DataError, match="entity 1 occurs twice"):
        read(file)
