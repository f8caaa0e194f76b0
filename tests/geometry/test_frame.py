"""The letterbox and the way back to the image."""

import json
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from refcli.geometry.frame import Frame

SIZES = [(160, 75), (94, 171), (61, 61), (640, 427), (427, 640), (1, 1), (1000, 3), (3, 1000), (5000, 4000)]


def test_sizes_and_offsets_equal_the_published_transform(fixtures):
    cases = json.loads((fixtures / "transforms" / "meta.json").read_text())
    letterboxes = {name: case for name, case in cases.items() if "resized_hw" in case}
    assert len(letterboxes) == 7
    for name, case in letterboxes.items():
        height, width = case["src_hw"]
        side = int(name.split(".")[1])
        frame = Frame.fit(width, height, side, side)
        assert [frame.resized_height, frame.resized_width] == case["resized_hw"], name
        assert (frame.top, frame.left) == (case["top"], case["left"]), name


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("model", [(96, 96), (384, 384), (128, 64)])
def test_the_image_fits_and_touches_two_sides(size, model):
    frame = Frame.fit(*size, *model)
    assert 1 <= frame.resized_width <= frame.model_width
    assert 1 <= frame.resized_height <= frame.model_height
    assert frame.resized_width == frame.model_width or frame.resized_height == frame.model_height
    assert frame.left >= 0 and frame.left + frame.resized_width <= frame.model_width
    assert frame.top >= 0 and frame.top + frame.resized_height <= frame.model_height


def test_boxes_survive_a_round_trip():
    rng = random.Random(0)
    for _ in range(200):
        width, height = rng.randint(1, 3000), rng.randint(1, 3000)
        frame = Frame.fit(width, height, rng.choice([96, 384]), rng.choice([96, 384]), scale=rng.uniform(0.2, 1))
        xs = sorted(rng.uniform(0, width) for _ in range(2))
        ys = sorted(rng.uniform(0, height) for _ in range(2))
        box = np.array([[xs[0], ys[0], xs[1], ys[1]]])
        there = frame.boxes_to_model(box)
        np.testing.assert_allclose(frame.boxes_to_image(there), box, atol=1e-6 * max(width, height))


def test_the_map_keeps_proportions_so_iou_does_not_change():
    frame = Frame.fit(640, 427, 384, 384)
    first, second = frame.boxes_to_model(np.array([[0.0, 0, 100, 200], [50, 20, 110, 140]]))
    sides = first[2:] - first[:2], second[2:] - second[:2]
    np.testing.assert_allclose(sides[0] / sides[1], [100 / 60, 200 / 120])


def test_boxes_outside_the_image_are_clipped_to_it():
    frame = Frame.fit(200, 100, 96, 96)
    boxes = frame.boxes_to_image(np.array([[-50.0, 0.0, 500.0, 96.0]]))
    assert boxes.tolist() == [[0.0, 0.0, 200.0, 100.0]]


def test_masks_equal_a_bilinear_resize_of_the_cut_out_letterbox():
    frame = Frame.fit(150, 101, 96, 96)
    logits = torch.randn(3, 96, 96, generator=torch.Generator().manual_seed(1))
    cut = logits[:, frame.top : frame.top + frame.resized_height, frame.left : frame.left + frame.resized_width]
    resized = F.interpolate(cut[None], size=(101, 150), mode="bilinear", align_corners=False)[0]
    masks = frame.masks_to_image(logits)
    assert masks.shape == (3, 101, 150)
    assert masks.dtype == np.bool_
    is_clear = (resized.abs() > 1e-5).numpy()
    assert (masks == (resized > 0).numpy())[is_clear].all()


@pytest.mark.parametrize("cells", [24, 48, 96, 192])
@pytest.mark.parametrize("size", [(200, 100), (100, 200), (64, 64), (300, 50)])
def test_predictions_on_the_padding_stay_outside_the_image(size, cells):
    frame = Frame.fit(*size, 96, 96)
    centres = (torch.arange(cells) + 0.5) * 96 / cells
    is_row = (centres > frame.top) & (centres < frame.top + frame.resized_height)
    is_column = (centres > frame.left) & (centres < frame.left + frame.resized_width)
    assert {frame.top % 4, frame.left % 4, frame.resized_height % 4, frame.resized_width % 4} == {0}
    padding_only = torch.where(is_row[:, None] & is_column, -1.0, 1000.0)[None]
    assert not frame.masks_to_image(padding_only).any()
    assert frame.masks_to_image(-padding_only).all()


def test_a_blob_lands_on_the_same_place_at_every_mask_resolution():
    frame = Frame.fit(400, 300, 96, 96)
    box = np.array([[100.0, 60.0, 260.0, 220.0]])
    x1, y1, x2, y2 = frame.boxes_to_model(box)[0]
    for cells in (48, 96, 192):
        centres = (torch.arange(cells) + 0.5) * 96 / cells
        edges_x = torch.minimum(centres - x1, x2 - centres)
        edges_y = torch.minimum(centres - y1, y2 - centres)
        mask = frame.masks_to_image(torch.minimum(edges_x[None, :], edges_y[:, None])[None])[0]
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(found, box[0], atol=3)


def test_no_masks_give_no_bitmaps():
    assert Frame.fit(20, 10, 96, 96).masks_to_image(torch.empty(0, 24, 24)).shape == (0, 10, 20)
