"""The evaluation transform equals the published one; training views move image, boxes and masks together."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from refcli.config.schema import AugmentSettings, TowerSettings
from refcli.contracts.example import Example, Region
from refcli.data.training.augmentation import draw_view
from refcli.data.training.dataset import make_sample
from refcli.data.training.transforms import IMAGE_MEAN, IMAGE_STD, letterbox, nearest_indices
from refcli.geometry.masks import encode_mask, mask_box

EVERYTHING = AugmentSettings(flip=0.5, min_scale=0.5, translate=True, crop=0.8, colour_jitter=0.4)
ONE_LEVEL = 1 / 255 / min(IMAGE_STD)


def tower(height, width):
    return TowerSettings(image_size=(height, width), patch_size=8, dim=64, heads=4)


def example(width, height, regions, expression="the thing"):
    return Example("id", "toy", "train", "image.png", "image", width, height, expression, tuple(regions), "attribute")


def ellipse(height, width, centre, radii):
    """A bitmap with its exact box as a Region."""
    y, x = np.mgrid[:height, :width]
    mask = ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 <= 1
    rle = encode_mask(mask)
    return mask, Region(mask_box(rle), rle)


def grey_image(mask):
    """White where the mask is, black elsewhere."""
    return Image.fromarray(np.repeat(np.where(mask, 255, 0).astype(np.uint8)[..., None], 3, axis=2))


def grown(mask):
    """The mask and its neighbouring pixels."""
    return F.max_pool2d(torch.from_numpy(mask)[None].float(), 3, stride=1, padding=1)[0].numpy().astype(bool)


def box_of(mask):
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=float)


def box_xyxy(sample):
    _, height, width = sample.image.shape
    cx, cy, w, h = sample.box_cxcywh.astype(float)
    return np.array([(cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height])


@pytest.mark.parametrize("side", [96, 128])
@pytest.mark.parametrize("name", ["wide", "tall", "square_up"])
def test_the_evaluation_transform_equals_the_published_one(fixtures, name, side):
    golden = np.load(fixtures / "transforms" / "eval_transform.npz")
    pixels, mask = golden[f"{name}.image_u8"], golden[f"{name}.obj_mask"][0].astype(bool)
    height, width = mask.shape
    region = Region(tuple(golden[f"{name}.box_xyxy"].tolist()), encode_mask(mask))
    sample = make_sample(
        Image.fromarray(pixels), example(width, height, [region]), tower=tower(side, side), augment=None, draw=0
    )
    np.testing.assert_allclose(sample.image, golden[f"{name}.{side}.image"], atol=1e-5)
    np.testing.assert_array_equal(sample.mask, golden[f"{name}.{side}.obj_mask"][0].astype(bool))
    np.testing.assert_allclose(sample.box_cxcywh, golden[f"{name}.{side}.box_cxcywh"], atol=1e-6)
    assert sample.mask_is_known
    assert sample.exists


def test_a_photograph_at_384_equals_the_published_transform(fixtures):
    golden = np.load(fixtures / "transforms" / "eval_transform.npz")
    facts = json.loads((fixtures / "transforms" / "meta.json").read_text())["real.384"]
    mask = np.zeros((427, 640), bool)
    mask[50:300, 100:400] = True
    region = Region(tuple(golden["real.box_xyxy"].tolist()), encode_mask(mask))
    image = Image.fromarray(golden["real.image_u8"])
    sample = make_sample(image, example(640, 427, [region]), tower=tower(384, 384), augment=None, draw=0)
    np.testing.assert_allclose(sample.image[:, ::3, ::3], golden["real.384.image_every3"], atol=1e-5)
    np.testing.assert_array_equal(sample.mask, golden["real.384.obj_mask"][0].astype(bool))
    np.testing.assert_allclose(sample.box_cxcywh, golden["real.384.box_cxcywh"], atol=1e-6)
    assert np.isclose(sample.image.mean(dtype=np.float64), facts["image_mean"], atol=1e-6)
    assert np.isclose(np.abs(sample.image).sum(dtype=np.float64), facts["image_abs_sum"], rtol=1e-6)


def test_the_padding_is_exactly_where_the_published_pad_mask_is(fixtures):
    golden = np.load(fixtures / "transforms" / "eval_transform.npz")
    image, frame = letterbox(golden["tall.image_u8"], tower(96, 96))
    padded = golden["tall.96.pad_mask"].astype(bool)
    assert (image[:, padded] == 0).all()
    assert (padded.sum(axis=1) == 96 - frame.resized_width).all()


def test_nearest_indices_are_those_of_torch():
    for source, target in [(7, 3), (3, 7), (640, 384), (427, 256), (200, 96), (1, 5), (1000, 333), (333, 1000)]:
        torch_indices = F.interpolate(torch.arange(float(source))[None, None], size=target, mode="nearest")[0, 0]
        np.testing.assert_array_equal(nearest_indices(source, target), torch_indices.long().numpy())


def test_several_regions_are_joined():
    first_mask, first = ellipse(96, 96, (20, 30), (8, 10))
    second_mask, second = ellipse(96, 96, (70, 60), (12, 6))
    image = Image.new("RGB", (96, 96))
    sample = make_sample(image, example(96, 96, [first, second]), tower=tower(96, 96), augment=None, draw=0)
    np.testing.assert_array_equal(sample.mask, first_mask | second_mask)
    np.testing.assert_allclose(box_xyxy(sample), box_of(first_mask | second_mask), atol=1e-4)


def test_no_region_means_no_target():
    image = Image.new("RGB", (50, 40))
    for augment in (None, EVERYTHING):
        sample = make_sample(image, example(50, 40, []), tower=tower(96, 96), augment=augment, draw=3)
        assert not sample.exists
        assert not sample.mask.any()
        assert sample.box_cxcywh.tolist() == [0, 0, 0, 0]


def test_a_region_without_mask_fills_its_box_and_is_marked():
    image = Image.new("RGB", (96, 96))
    mask, known = ellipse(96, 96, (20, 30), (8, 10))
    unknown = Region((50.4, 60.5, 80.0, 200.0))
    sample = make_sample(image, example(96, 96, [unknown]), tower=tower(96, 96), augment=None, draw=0)
    assert not sample.mask_is_known
    filled = np.zeros((96, 96), bool)
    filled[61:, 50:80] = True
    np.testing.assert_array_equal(sample.mask, filled)
    both = make_sample(image, example(96, 96, [known, unknown]), tower=tower(96, 96), augment=None, draw=0)
    assert not both.mask_is_known
    np.testing.assert_array_equal(both.mask, filled | mask)


@pytest.mark.parametrize("size", [(200, 150), (90, 240), (96, 96)])
def test_the_target_is_never_lost_and_box_mask_and_image_stay_aligned(size):
    width, height = size
    rng = random.Random(0)
    for draw in range(150):
        radii = (rng.uniform(6, width / 4), rng.uniform(6, height / 4))
        centre = (rng.uniform(radii[0], width - radii[0]), rng.uniform(radii[1], height - radii[1]))
        mask, region = ellipse(height, width, centre, radii)
        record = example(width, height, [region])
        augment = EVERYTHING.model_copy(update={"colour_jitter": 0.0})
        sample = make_sample(grey_image(mask), record, tower=tower(96, 64), augment=augment, draw=draw)
        view = draw_view(random.Random(draw), record, tower(96, 64), augment)
        pixel = max(1.0, view.frame.ratio) + 1
        assert sample.exists
        np.testing.assert_allclose(box_of(sample.mask), box_xyxy(sample), atol=pixel)
        left, top, right, bottom = box_xyxy(sample)
        assert -1 <= left < right <= 65
        assert -1 <= top < bottom <= 97
        # The white object of the image lies exactly where the mask is.
        is_white = sample.image[0] > (0.5 - IMAGE_MEAN[0]) / IMAGE_STD[0]
        assert not (is_white & ~grown(sample.mask)).any(), draw
        assert not (sample.mask & ~grown(is_white)).any(), draw


def test_a_crop_keeps_every_region_completely_visible():
    _, first = ellipse(100, 200, (30, 30), (10, 10))
    _, second = ellipse(100, 200, (110, 70), (20, 10))
    record = example(200, 100, [first, second])
    seen = set()
    for draw in range(200):
        left, top, right, bottom = draw_view(random.Random(draw), record, tower(96, 96), EVERYTHING).crop_xyxy
        assert 0 <= left <= 20 and 130 <= right <= 200
        assert 0 <= top <= 20 and 80 <= bottom <= 100
        seen.add((left, top, right, bottom))
    assert len(seen) > 50


def test_expressions_of_position_are_never_cropped():
    _, region = ellipse(100, 200, (30, 30), (10, 10))
    always = AugmentSettings(crop=1.0)
    for expression, is_cropped in [("second cup from the left", False), ("top cup", False), ("red cup", True)]:
        record = example(200, 100, [region], expression)
        crops = {draw_view(random.Random(draw), record, tower(96, 96), always).crop_xyxy for draw in range(30)}
        assert (crops != {(0, 0, 200, 100)}) == is_cropped, expression


def test_a_mirrored_image_has_a_mirrored_expression_box_and_mask():
    mask, region = ellipse(96, 96, (20, 30), (8, 10))
    record = example(96, 96, [region], "the Left one")
    always = AugmentSettings(flip=1.0)
    sample = make_sample(grey_image(mask), record, tower=tower(96, 96), augment=always, draw=0)
    plain = make_sample(grey_image(mask), record, tower=tower(96, 96), augment=None, draw=0)
    assert sample.expression == "the Right one"
    np.testing.assert_array_equal(sample.image, plain.image[:, :, ::-1])
    np.testing.assert_array_equal(sample.mask, plain.mask[:, ::-1])
    np.testing.assert_allclose(sample.box_cxcywh, plain.box_cxcywh * [-1, 1, 1, 1] + [1, 0, 0, 0], atol=1e-6)


def test_without_augmentation_the_training_sample_is_the_evaluation_sample():
    mask, region = ellipse(70, 120, (40, 30), (15, 10))
    record = example(120, 70, [region])
    plain = make_sample(grey_image(mask), record, tower=tower(96, 96), augment=None, draw=0)
    unchanged = make_sample(grey_image(mask), record, tower=tower(96, 96), augment=AugmentSettings(), draw=9)
    for name in ("image", "mask", "box_cxcywh"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(unchanged, name))


def test_the_augmentation_depends_only_on_the_draw():
    mask, region = ellipse(70, 120, (40, 30), (15, 10))
    record = example(120, 70, [region])

    def image_of(draw):
        return make_sample(grey_image(mask), record, tower=tower(96, 96), augment=EVERYTHING, draw=draw).image

    np.testing.assert_array_equal(image_of(1), image_of(1))
    assert len({image_of(draw).tobytes() for draw in range(20)}) == 20


def test_scale_and_translation_use_the_whole_range():
    record = example(96, 48, [])
    settings = AugmentSettings(min_scale=0.5, translate=True)
    frames = [draw_view(random.Random(draw), record, tower(96, 96), settings).frame for draw in range(400)]
    assert {frame.resized_width for frame in frames} >= set(range(50, 95))
    assert min(frame.top for frame in frames) == 0
    assert max(frame.top + frame.resized_height for frame in frames) == 96
    assert all(frame.left + frame.resized_width <= 96 for frame in frames)


def test_colour_jitter_changes_colours_only():
    _, region = ellipse(96, 96, (40, 30), (15, 10))
    record = example(96, 96, [region])
    colours = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    always = AugmentSettings(colour_jitter=0.4, colour_jitter_probability=1.0)
    plain = make_sample(Image.fromarray(colours), record, tower=tower(96, 96), augment=None, draw=0)
    jittered = make_sample(Image.fromarray(colours), record, tower=tower(96, 96), augment=always, draw=0)
    np.testing.assert_array_equal(plain.mask, jittered.mask)
    np.testing.assert_array_equal(plain.box_cxcywh, jittered.box_cxcywh)
    assert np.abs(plain.image - jittered.image).max() > ONE_LEVEL
    correlation = np.corrcoef(plain.image.ravel(), jittered.image.ravel())[0, 1]
    assert correlation > 0.8


def test_a_box_that_leaves_the_image_can_still_be_cropped():
    record = example(40, 30, [Region((-3.0, 25.5, 41.0, 33.0))])
    for draw in range(50):
        left, top, right, bottom = draw_view(random.Random(draw), record, tower(96, 96), EVERYTHING).crop_xyxy
        assert (left, right, bottom) == (0, 40, 30)
        assert 0 <= top <= 25


def test_the_smallest_images_survive_every_augmentation():
    for width, height in [(1, 1), (1, 300), (300, 1), (2, 3)]:
        record = example(width, height, [Region((0.0, 0.0, float(width), float(height)))])
        for draw in range(20):
            sample = make_sample(
                Image.new("RGB", (width, height)), record, tower=tower(96, 96), augment=EVERYTHING, draw=draw
            )
            assert sample.mask.any()
            assert np.isfinite(sample.image).all()


def test_a_sample_carries_id_kind_and_expression():
    record = replace(example(10, 10, []), id="a/7", kind="ordinal")
    sample = make_sample(Image.new("RGB", (10, 10)), record, tower=tower(96, 96), augment=None, draw=0)
    assert (sample.id, sample.kind, sample.expression) == ("a/7", "ordinal", "the thing")
