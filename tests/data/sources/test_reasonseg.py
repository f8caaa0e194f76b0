"""ReasonSeg's polygons are drawn as LISA draws them, and its files may be in Windows-1252."""

from __future__ import annotations

import json

import numpy as np
import pytest
from corpora.json_sets import square, write_reasonseg

from refcli.data.sources.reasonseg import IGNORED, SOURCE, TARGET, label_map
from refcli.data.sources.record import Problems
from refcli.errors import DataError
from refcli.geometry.masks import decode_mask


def read(folder, problems=None):
    problems = Problems() if problems is None else problems
    return list(SOURCE.read({"val": folder}, SOURCE.settings(), dataset="mine", problems=problems))


def polygon(*points):
    return np.array(points, dtype=np.int32)


def distances(points, height, width):
    """The distance of every pixel's centre from a polygon, 0 inside of it, by a loop over its edges."""
    rows, columns = np.mgrid[:height, :width]
    nearest = np.full((height, width), np.inf)
    is_inside = np.zeros((height, width), dtype=bool)
    for (x1, y1), (x2, y2) in zip(points, np.roll(points, -1, axis=0), strict=True):
        share = ((columns - x1) * (x2 - x1) + (rows - y1) * (y2 - y1)) / max((x2 - x1) ** 2 + (y2 - y1) ** 2, 1)
        share = np.clip(share, 0, 1)
        nearest = np.minimum(nearest, np.hypot(columns - x1 - share * (x2 - x1), rows - y1 - share * (y2 - y1)))
        crosses = (y1 > rows) != (y2 > rows)
        with np.errstate(divide="ignore", invalid="ignore"):
            is_inside ^= crosses & (columns < x1 + (rows - y1) * (x2 - x1) / (y2 - y1))
    return np.where(is_inside, 0, nearest)


def test_a_polygon_covers_its_inside_and_an_outline_of_one_pixel():
    generator = np.random.default_rng(3)
    for _ in range(20):
        points = generator.integers(2, [38, 28], size=(3, 2)).astype(np.int32)
        distance = distances(points, 30, 40)

        drawn = label_map([(TARGET, points)], 30, 40) == TARGET

        assert drawn[distance == 0].all()
        assert drawn[tuple(points[:, ::-1].T)].all()
        assert not drawn[distance > 0.75].any()


def test_the_areas_of_nested_squares_are_those_counted_by_hand():
    squares = [(TARGET, square(14, 14, 2)), (IGNORED, square(12, 12, 6)), (TARGET, square(10, 10, 10))]

    drawn = label_map([(value, polygon(*corners)) for value, corners in squares], 30, 40)

    assert (drawn == TARGET).sum() == 11**2 - 7**2 + 3**2
    assert (drawn == IGNORED).sum() == 7**2 - 3**2
    assert drawn[15, 15] == TARGET
    assert drawn[12, 12] == IGNORED


def test_all_texts_share_the_target_and_the_ignored_region(tmp_path):
    problems = Problems()

    records = {
        record.where.partition(".")[0][-1]: record for record in read(write_reasonseg(tmp_path / "val"), problems)
    }

    texts = [one.text for one in records["a"].expressions]
    assert texts == ["the café’s table", "where one eats"]
    assert [records[name].kind for name in "ab"] == ["phrase", "sentence"]
    assert decode_mask(records["a"].ignored).sum() == 16**2 - 5**2
    assert records["b"].ignored is None
    assert "no pixel is in a target polygon" in problems.places["broken_file"][0]


def test_an_annotation_without_a_text_is_reported(tmp_path):
    folder = write_reasonseg(tmp_path / "val")
    shape = {"label": "target", "points": square(1, 1, 5)}
    (folder / "b.json").write_text(json.dumps({"text": [], "is_sentence": True, "shapes": [shape]}))
    problems = Problems()

    assert all(one.expressions for one in read(folder, problems))
    assert "val/b.json: annotation: there is no text" in problems.places["broken_file"]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"label": "target", "points": square(1, 1, 5), "shape_type": "circle"}, "a circle of 4 points"),
        ({"label": "target", "points": []}, "a polygon of 0 points"),
        ({"label": "target", "points": [[1, 1], [99999, 1], [1, 5]]}, "far outside the image"),
    ],
)
def test_a_shape_that_cannot_be_drawn_refuses_its_file(tmp_path, shape, message):
    folder = write_reasonseg(tmp_path / "val")
    for path in folder.glob("*.json"):
        path.write_text(json.dumps({"text": ["x"], "is_sentence": True, "shapes": [shape]}))

    with pytest.raises(DataError, match=message):
        read(folder)


def test_an_unknown_label_counts_as_target_and_is_reported(tmp_path):
    folder = write_reasonseg(tmp_path / "val")
    shape = {"label": "taget", "points": square(1, 1, 5)}
    (folder / "b.json").write_text(json.dumps({"text": ["x"], "is_sentence": True, "shapes": [shape]}))
    problems = Problems()

    records = read(folder, problems)

    assert decode_mask(records[1].regions[0].segmentation).sum() == 6**2
    assert problems.counts["unknown_label"] == 1


def test_a_key_that_changes_the_meaning_of_an_annotation_is_reported_by_its_kind(tmp_path):
    folder = write_reasonseg(tmp_path / "val")
    shapes = [{"label": "target", "points": square(1, 1, 5)}]
    (folder / "b.json").write_text(json.dumps({"text": ["x"], "is_sentence": True, "shapes": shapes, "exist": False}))
    problems = Problems()

    records = read(folder, problems)

    assert [record.where for record in records] == ["val/a.json: annotation", "val/c.json: annotation"]
    assert problems.counts["unread_meaning"] == 1
