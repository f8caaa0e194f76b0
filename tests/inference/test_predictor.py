"""The Predictor finds what is there, in the pixels of the original image."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from refcli.config.schema import HeadChoice, ModelSettings, TowerSettings
from refcli.contracts.example import RLE
from refcli.errors import UsageError
from refcli.geometry.masks import decode_mask, rle_area
from refcli.grounder import Grounder
from refcli.inference.predictor import Predictor
from refcli.inference.requests import Request
from refcli.weights.directory import save_weights


def iou(mask: np.ndarray, truth: np.ndarray) -> float:
    return (mask & truth).sum() / (mask | truth).sum()


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (300, 200, (30, 40, 150, 120)),
        (90, 400, (10, 300, 80, 390)),
        (64, 64, (0, 0, 64, 64)),
        (1000, 90, (5, 10, 995, 80)),
    ],
)
def test_boxes_and_masks_are_in_the_pixels_of_the_original_image(finds_white, white_box, width, height, box):
    pixels = white_box(width, height, box)
    (answer,) = Predictor(finds_white()).predict(pixels, "it")
    pixel_of_the_model = max(width, height) / 96
    assert (answer.width, answer.height) == (width, height)
    np.testing.assert_allclose(answer.targets[0].box_xyxy, box, atol=1.01 * pixel_of_the_model)
    truth = pixels[..., 0] > 0
    assert answer.targets[0].mask.size == (height, width)
    assert iou(decode_mask(answer.targets[0].mask), truth) > 0.85


def test_an_image_gives_the_same_answer_as_path_bytes_array_and_pillow_image(finds_white, white_box, tmp_path):
    pixels = white_box(120, 80, (20, 10, 60, 50))
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    predictor = Predictor(finds_white())
    answers = [predictor.predict(source, "it")[0] for source in (path, str(path), path.read_bytes(), pixels)]
    answers += predictor.predict(Image.fromarray(pixels), "it")
    assert len({(answer.targets, answer.width, answer.height) for answer in answers}) == 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "I;16", "1", "LA"])
def test_pillow_images_of_any_mode_are_read(finds_white, white_box, mode):
    pixels = white_box(120, 80, (20, 10, 60, 50))
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(pixels).convert(mode)
    (answer,) = Predictor(finds_white()).predict(image, "it")
    assert answer.error is None
    np.testing.assert_allclose(answer.targets[0].box_xyxy, (20, 10, 60, 50), atol=2)


def test_exif_orientation_is_applied_so_that_boxes_fit_the_upright_image(finds_white, white_box, tmp_path):
    upright = Image.fromarray(white_box(80, 120, (10, 20, 70, 40)))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side, to be turned clockwise when shown
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.jpg", exif=exif, quality=98)
    (answer,) = Predictor(finds_white()).predict(tmp_path / "a.jpg", "it")
    assert (answer.width, answer.height) == (80, 120)
    np.testing.assert_allclose(answer.targets[0].box_xyxy, (10, 20, 70, 40), atol=2)


def test_below_the_threshold_the_answer_is_no_target_and_the_raw_one_keeps_its_box(finds_white, white_box):
    loaded = finds_white()
    predictor = Predictor(loaded)
    pixels = white_box(50, 50, (5, 5, 45, 45))
    requests = [Request("0", "a", "it", pixels), Request("1", "b", "the big red car over there", pixels)]
    final = list(predictor.predict_many(requests))
    raw = [answered.answer for answered in predictor.answer_requests(requests, raw=True)]
    assert [answer.no_target for answer in final] == [False, True]
    assert [len(answer.targets) for answer in final] == [1, 0]
    assert [answer.no_target for answer in raw] == [False, True]
    assert [len(answer.targets) for answer in raw] == [1, 1]
    words = len(loaded.tokenizer.encode("it"))
    assert final[0].no_target_score == pytest.approx(words / 10)


def test_targets_below_min_score_are_dropped(finds_white, white_box):
    pixels = white_box(50, 50, (5, 5, 45, 45))
    assert not Predictor(finds_white(), min_score=0.75).predict(pixels, "it")[0].no_target
    (answer,) = Predictor(finds_white(), min_score=0.76).predict(pixels, "it")
    assert answer.no_target
    assert answer.targets == ()


def test_a_head_without_masks_answers_with_boxes_only(finds_white, white_box):
    (answer,) = Predictor(finds_white(mask=False)).predict(white_box(50, 50, (5, 5, 45, 45)), "it")
    assert answer.targets[0].mask is None


def test_a_head_without_boxes_answers_with_the_tight_box_of_its_mask(finds_white, white_box):
    predictor = Predictor(finds_white(box=False, existence=False))
    (answer,) = predictor.predict(white_box(96, 96, (8, 16, 40, 72)), "it")
    assert answer.targets[0].box_xyxy == (8, 16, 40, 72)
    assert rle_area(answer.targets[0].mask) == 32 * 56
    assert answer.no_target_score is None


def test_a_head_without_boxes_that_gives_an_empty_mask_answers_no_target(finds_white):
    (answer,) = Predictor(finds_white(box=False, existence=False)).predict(np.zeros((40, 60, 3), np.uint8), "it")
    assert answer.no_target
    assert answer.targets == ()


def test_broken_requests_are_answered_with_an_error_and_the_rest_continues_in_order(finds_white, white_box, tmp_path):
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)).save(whole, "JPEG")
    (tmp_path / "half.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (tmp_path / "text.jpg").write_text("this is not a image")
    pixels = white_box(60, 40, (5, 5, 35, 35))
    requests = [
        Request("good", "a", "it", pixels),
        Request("half", str(tmp_path / "half.jpg"), "it"),
        Request("text", str(tmp_path / "text.jpg"), "it"),
        Request("none", str(tmp_path / "none.jpg"), "it"),
        Request("folder", str(tmp_path), "it"),
        Request("empty", "a", "", pixels),
        Request("blank", "a", " \t\n", pixels),
        Request("line", "", "", error="line 7 is malformed"),
        Request("grey", "a", "it", pixels[..., 0]),
        Request("last", "a", "it", pixels),
    ]
    answers = list(Predictor(finds_white(), batch_size=3).predict_many(requests))
    assert [answer.id for answer in answers] == [request.id for request in requests]
    assert [answer.error is None for answer in answers] == [True] + [False] * 8 + [True]
    sizes = {answer.id: (answer.width, answer.height) for answer in answers}
    assert sizes["empty"] == sizes["blank"] == (60, 40)
    assert sizes["half"] == sizes["none"] == (0, 0)
    assert not any(answer.targets or answer.no_target for answer in answers if answer.error)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3000, 2)])
def test_extreme_shapes_are_answered_inside_the_image(finds_white, size):
    width, height = size
    (answer,) = Predictor(finds_white()).predict(np.full((height, width, 3), 255, np.uint8), "it")
    left, top, right, bottom = answer.targets[0].box_xyxy
    assert 0 <= left <= right <= width
    assert 0 <= top <= bottom <= height
    assert answer.targets[0].mask.size == (height, width)


@pytest.mark.parametrize("expression", ["das größte Ei", "左の猫", "🐈 🐈", "\u202eabc", "x" * 10_000, "word " * 2_000])
def test_any_text_with_content_is_answered(finds_white, white_box, expression):
    (answer,) = Predictor(finds_white()).predict(white_box(50, 50, (5, 5, 45, 45)), expression)
    assert answer.error is None
    assert answer.expression == expression


def test_batching_and_neighbours_do_not_change_an_answer(tmp_path):
    torch.manual_seed(0)
    settings = ModelSettings(
        tower=TowerSettings(image_size=64, dim=32, layers=2, heads=2, ffn_dim=64, vocabulary_size=4096),
        head=HeadChoice(settings={"res": True, "existence": True, "mask_upsamples": 1, "existence_threshold": 0.0}),
    )
    save_weights(tmp_path, Grounder.from_settings(settings), settings, meta={})
    pixels = [np.random.default_rng(seed).integers(0, 255, (50 + 7 * seed, 80, 3), np.uint8) for seed in range(3)]
    texts = ["the red one", "a much longer expression about the second small thing", "left"]
    requests = [Request(f"{n}{text}", "", text, image) for n, image in enumerate(pixels) for text in texts]
    together = list(Predictor(tmp_path, batch_size=4).predict_many(requests))
    alone = list(Predictor(tmp_path, batch_size=1).predict_many(requests))
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.targets[0].box_xyxy, other.targets[0].box_xyxy, atol=1e-3)
        assert one.no_target_score == pytest.approx(other.no_target_score, abs=1e-5)


def test_batches_are_full_across_images(finds_white, white_box):
    loaded = finds_white()
    requests = [Request(str(n), "", "it", white_box(30, 30, (n, 0, 30, 30))) for n in range(10)]
    assert len(list(Predictor(loaded, batch_size=4).predict_many(requests))) == 10
    assert loaded.grounder.batch_sizes == [4, 4, 2]


def test_answers_that_are_not_finite_become_errors(finds_white, white_box):
    loaded = finds_white()
    honest = loaded.grounder.predict

    def broken(*inputs):
        prediction = honest(*inputs)
        prediction.boxes_xyxy[0, 0, 2] = float("nan")
        return prediction

    loaded.grounder.predict = broken
    (answer,) = Predictor(loaded).predict(white_box(50, 50, (5, 5, 45, 45)), "it")
    assert "not finite" in answer.error


def test_unknown_weights_devices_and_batch_sizes_are_refused(finds_white):
    with pytest.raises(UsageError, match="no weights called 'nowhere'"):
        Predictor("nowhere")
    with pytest.raises(UsageError, match="no device called 'abacus'"):
        Predictor(finds_white(), device="abacus")
    with pytest.raises(UsageError, match="at least one pair, not 0"):
        Predictor(finds_white(), batch_size=0)


def test_mask_run_lengths_are_coco_compressed_bytes(finds_white, white_box):
    (answer,) = Predictor(finds_white()).predict(white_box(50, 50, (5, 5, 45, 45)), "it")
    mask = answer.targets[0].mask
    assert isinstance(mask, RLE)
    assert isinstance(mask.counts, bytes)
