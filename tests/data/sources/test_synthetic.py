"""Synthetic scenes: determinism, masks and boxes, the kinds of expressions, and the written store."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pydantic import ValidationError

from refcli.data.language.dice import generator
from refcli.data.sources.synthetic import (
    SyntheticSettings,
    iterate_expressions,
    render_scene,
    split_sizes,
    vocabulary,
    write_synthetic,
)
from refcli.data.sources.synthetic.palette import COLOURS
from refcli.data.sources.synthetic.render import render
from refcli.data.sources.synthetic.scene import Scene, SceneObject, draw_scene
from refcli.data.sources.synthetic.settings import KINDS
from refcli.data.sources.synthetic.shapes import SHAPES, shape_table
from refcli.data.store.read import Store
from refcli.errors import ConfigError, UsageError


def digests(root: Path) -> dict[str, str]:
    """sha256 of every file below a directory."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_scene_is_the_same_whenever_it_is_drawn() -> None:
    settings = SyntheticSettings(seed=3)
    alone = render_scene(settings, "train", 17)
    for index in range(15, 18):
        after_others = render_scene(settings, "train", index)
    np.testing.assert_array_equal(alone.image, after_others.image)
    assert alone.examples == after_others.examples


@pytest.mark.parametrize(("seed", "split", "index"), [(4, "train", 17), (3, "val", 17), (3, "train", 18)])
def test_seed_split_and_index_each_give_another_scene(seed: int, split: str, index: int) -> None:
    one = render_scene(SyntheticSettings(seed=3), "train", 17)
    other = render_scene(SyntheticSettings(seed=seed), split, index)
    assert one.image.shape != other.image.shape or not np.array_equal(one.image, other.image)


def test_one_and_two_workers_write_the_same_bytes(tmp_path: Path) -> None:
    for workers in (1, 2):
        write_synthetic(tmp_path / str(workers), size=60, seed=9, splits=["train"], workers=workers)
    one, two = digests(tmp_path / "1"), digests(tmp_path / "2")
    assert one == two
    assert len([name for name in one if not name.startswith(".")]) == 60 + 2


def test_the_written_splits_open_as_a_store_with_their_images(tmp_path: Path) -> None:
    reported: list[tuple[str, int, int]] = []
    summaries = write_synthetic(tmp_path, size=25, seed=2, progress=lambda *state: reported.append(state))
    store = Store(tmp_path)
    assert store.names() == ["synthetic:test", "synthetic:train", "synthetic:val"]
    assert [(item.split, item.images) for item in summaries] == [("train", 25), ("val", 1), ("test", 1)]
    assert reported == [("train", 25, 25), ("val", 1, 1), ("test", 1, 1)]
    split = store.split("synthetic:train")
    rendered = render_scene(SyntheticSettings(seed=2), "train", 0)
    assert [split[number] for number in range(len(rendered.examples))] == list(rendered.examples)
    stored = cv2.imread(str(split.image_path(split[0])))[..., ::-1]
    assert stored.shape == rendered.image.shape
    assert np.abs(stored.astype(int) - rendered.image).mean() < 3
    origin = json.loads((tmp_path / "manifest.json").read_text())["datasets"]["synthetic"]["splits"]["val"]["origin"]
    assert SyntheticSettings.model_validate(origin["settings"]) == SyntheticSettings(seed=2)


def test_named_splits_all_have_the_full_size() -> None:
    assert split_sizes(40, ["a", "b"]) == {"a": 40, "b": 40}
    assert split_sizes(40, None) == {"train": 40, "val": 2, "test": 2}


def test_a_size_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        write_synthetic(tmp_path, size=0)


def test_boxes_are_the_extent_of_masks_and_masks_are_visible_enough() -> None:
    settings = SyntheticSettings(seed=1, overlap=1.0)
    for index in range(40):
        rendered = render_scene(settings, "train", index)
        for region in (region for example in rendered.examples for region in example.regions):
            bitmap = coco_mask.decode({"size": list(region.mask.size), "counts": region.mask.counts})
            assert bitmap.shape == rendered.image.shape[:2]
            rows, columns = np.nonzero(bitmap)
            assert region.box_xyxy == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            item = rendered.scene.objects[int(region.source_id)]
            alone = Scene(**{**_fields(rendered.scene), "objects": (item,), "shadow": None})
            whole = np.count_nonzero(render(alone, np.random.default_rng(0)).owner == 0)
            assert settings.min_visible * whole <= len(rows) <= whole


def _fields(scene: Scene) -> dict[str, object]:
    return {name: getattr(scene, name) for name in scene.__dataclass_fields__}


def test_a_rendered_circle_has_the_area_and_place_of_a_circle() -> None:
    scene = draw_scene(SyntheticSettings(canvas=(200, 200)), generator(0, "x", 0, 0, "layout"))
    assert scene is not None
    circle = SceneObject("circle", "red", "solid", None, 60.0, 100.25, 80.5, 0.0, 30.0, 30.0)
    rendered = render(Scene(**{**_fields(scene), "objects": (circle,), "shadow": None}), np.random.default_rng(0))
    rows, columns = np.nonzero(rendered.owner == 0)
    assert len(rows) == pytest.approx(np.pi * 30**2, rel=0.01)
    assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx((100.25, 80.5), abs=0.15)
    inside = rendered.image[rows, columns].mean(axis=0)
    assert np.abs(inside - COLOURS["red"]).max() < 15


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_visual_size_one(shape: str) -> None:
    outline = shape_table()[shape].outline
    x, y = outline.T
    area = 0.5 * abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))
    longest = np.ptp(outline, axis=0).max()
    assert np.sqrt(longest * 2 * np.sqrt(area / np.pi)) == pytest.approx(1)


def test_every_kind_occurs_about_as_often_as_its_weight() -> None:
    settings = SyntheticSettings(seed=8)
    examples = [example for index in range(300) for example in render_scene(settings, "train", index).examples]
    for kind in KINDS:
        share = sum(example.kind == kind for example in examples) / len(examples)
        assert share == pytest.approx(settings.kind_weights[kind], rel=0.45), kind


def test_the_expressions_of_a_scene_are_distinct_and_lower_case() -> None:
    settings = SyntheticSettings(seed=6)
    for index in range(100):
        texts = [example.expression for example in render_scene(settings, "train", index).examples]
        assert len(set(texts)) == len(texts)
        assert all(text == text.lower().strip() and "  " not in text for text in texts)


def test_expressions_keep_to_the_vocabulary() -> None:
    used = {word for text in iterate_expressions(SyntheticSettings(), 20_000) for word in text.split()}
    assert used <= set(vocabulary())
    assert len(used) >= 100


def test_iterating_gives_the_requested_number_of_expressions() -> None:
    assert len(list(iterate_expressions(SyntheticSettings(), 101))) == 101
    assert list(iterate_expressions(SyntheticSettings(), 5)) == list(iterate_expressions(SyntheticSettings(), 9))[:5]


def test_words_alone_hardly_reveal_whether_there_is_a_target() -> None:
    """No content word may be over twice or under half as frequent in sentences without a target."""
    settings = SyntheticSettings(seed=12)
    counts: dict[bool, dict[str, int]] = {True: {}, False: {}}
    totals = {True: 0, False: 0}
    for index in range(500):
        for example in render_scene(settings, "train", index).examples:
            is_absent = not example.regions
            totals[is_absent] += 1
            for word in set(example.expression.split()):
                counts[is_absent][word] = counts[is_absent].get(word, 0) + 1
    for word, count in counts[False].items():
        if word not in ("and", "first") and count / totals[False] > 0.04:
            ratio = counts[True].get(word, 0) / totals[True] / (count / totals[False])
            assert 0.5 < ratio < 2, (word, ratio)


def test_only_the_requested_kinds_occur() -> None:
    settings = SyntheticSettings(kind_weights={"attribute": 1.0, "no_target": 1.0})
    kinds = {example.kind for index in range(20) for example in render_scene(settings, "train", index).examples}
    assert kinds == {"attribute", "no_target"}


def test_the_number_of_objects_stays_in_its_range() -> None:
    settings = SyntheticSettings(objects=(4, 5))
    counts = {len(render_scene(settings, "train", index).scene.objects) for index in range(40)}
    assert counts == {4, 5}


@pytest.mark.parametrize(
    "wrong", [{"objects": (9, 3)}, {"kind_weights": {"riddle": 1.0}}, {"canvas": (40, 60)}, {"colour": "red"}]
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SyntheticSettings(**wrong)


def test_settings_without_room_end_in_an_error_instead_of_an_endless_search() -> None:
    crowded = SyntheticSettings(seed=1, objects=(12, 12), canvas=(96, 96), overlap=1, min_visible=1)
    with pytest.raises(ConfigError, match="no layout fits the settings in 3 attempts"):
        render_scene(crowded, "train", 0, max_attempts=3)
