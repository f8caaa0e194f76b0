"""Each convention counts like the code that it is named after."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from refcli.contracts.example import Example, Region
from refcli.contracts.prediction import Answer, Target
from refcli.data.training.transforms import nearest_indices
from refcli.errors import UsageError
from refcli.evaluation.mask_frames import FRAMES, MaskFrame
from refcli.evaluation.metrics.conventions import CONVENTIONS, choose_conventions, frames_of
from refcli.evaluation.metrics.measure import METRICS, measure
from refcli.evaluation.sample_columns import ScoreColumns
from refcli.evaluation.sample_score import score_sample
from refcli.geometry.box_tensors import box_iou_pairs
from refcli.geometry.frame import Frame
from refcli.geometry.masks import encode_mask

BOX = (0.0, 0.0, 10.0, 10.0)


def mask(rows: slice, columns: slice, *, height: int = 480, width: int = 480) -> np.ndarray:
    bitmap = np.zeros((height, width), dtype=bool)
    bitmap[rows, columns] = True
    return bitmap


def scored(*samples: tuple[np.ndarray | None, np.ndarray | None, bool], existence: float | None = 0.5) -> ScoreColumns:
    """Scores of (true mask or None, answered mask or None, says none) in all frames."""
    rows = []
    for number, (truth, drawn, says_none) in enumerate(samples):
        height, width = next(one.shape for one in (truth, drawn, np.zeros((480, 480))) if one is not None)
        regions = () if truth is None else (Region(BOX, encode_mask(truth)),)
        targets = () if drawn is None else (Target(BOX, 0.9, encode_mask(drawn)),)
        example = Example(str(number), "d", "s", str(number), "i", width, height, "x", regions)
        answer = Answer(str(number), "i", "x", width, height, targets, says_none, existence, "w")
        rows.append(score_sample(example, answer, frames=tuple(FRAMES)))
    return ScoreColumns.of(rows)


def worked_example() -> ScoreColumns:
    """No target: "no target", or 100 pixels drawn; a target of 200 pixels: half are drawn, or all, but "no target"."""
    hundred, two_hundred = mask(slice(0, 10), slice(0, 10)), mask(slice(0, 10), slice(0, 20))
    return scored(
        (None, None, True), (None, hundred, False), (two_hundred, hundred, False), (two_hundred, two_hundred, True)
    )


def test_the_worked_example_of_generalised_segmentation():
    rela = measure(worked_example(), "rela480").metrics
    assert rela["giou"] == pytest.approx(0.375)
    assert rela["ciou"] == pytest.approx(0.2)
    assert (rela["n_acc"], rela["t_acc"], rela["pr70"]) == (0.5, 0.5, 0.0)
    gsva = measure(worked_example(), "gsva").metrics
    assert gsva["giou"] == pytest.approx(0.625)
    assert gsva["ciou"] == pytest.approx(0.6)
    assert (gsva["n_acc"], gsva["t_acc"]) == (0.5, 0.5)
    assert measure(worked_example(), "rela480-text").metrics["ciou"] == pytest.approx(0.2)
    original = measure(worked_example()).metrics
    assert (original["giou"], original["ciou"]) == (pytest.approx(0.375), pytest.approx(0.2))


def test_a_wrong_none_costs_the_discarded_mask_in_the_code_and_only_the_truth_in_the_text():
    truth, larger = mask(slice(0, 10), slice(0, 10)), mask(slice(0, 10), slice(0, 50))
    scores = scored((truth, truth, False), (truth, larger, True))
    assert measure(scores, "rela480").metrics["ciou"] == pytest.approx(100 / (100 + 500))
    assert measure(scores, "rela480-text").metrics["ciou"] == pytest.approx(100 / (100 + 100))
    assert measure(scores, "gsva").metrics["ciou"] == pytest.approx(200 / (100 + 500))


def test_fewer_than_fifty_pixels_are_no_target_for_systems_that_state_nothing_about_existence():
    small, enough, large = (mask(slice(0, 1), slice(0, n)) for n in (49, 50, 400))
    samples = (None, small, False), (None, enough, False), (large, small, False), (large, enough, False)
    silent = scored(*samples, existence=None)
    assert (measure(silent, "rela480").metrics["n_acc"], measure(silent, "rela480").metrics["t_acc"]) == (0.5, 0.5)
    assert (measure(silent).metrics["n_acc"], measure(silent).metrics["t_acc"]) == (0.0, 1.0)
    speaking = measure(scored(*samples), "rela480").metrics
    assert (speaking["n_acc"], speaking["t_acc"]) == (0.0, 1.0)


def test_two_empty_masks_and_an_iou_of_exactly_a_half():
    empty, half, whole = mask(slice(0), slice(0)), mask(slice(0, 10), slice(0, 10)), mask(slice(0, 10), slice(0, 20))
    scores = scored((empty, empty, False), (whole, half, False))
    expected = {
        "original": (0.75, 1.0),
        "lavt480": (0.25, 0.5),
        "cgformer": (pytest.approx(0.25), 0.0),
        "cris": (pytest.approx(0.25), 0.0),
        "rela480": (0.25, None),
    }
    for name, (mask_miou, pr50) in expected.items():
        figures = measure(scores, name).metrics
        assert (figures["mask_miou"], figures.get("pr50")) == (mask_miou, pr50), name


def random_masks(generator: np.random.Generator, count: int, height: int, width: int) -> list[np.ndarray]:
    """Smooth blobs."""
    coarse = torch.from_numpy(generator.normal(size=(count, 1, 6, 6)))
    return list((F.interpolate(coarse, size=(height, width), mode="bicubic")[:, 0] > 0.3).numpy())


def test_stretched_masks_are_compared_pixel_by_pixel_as_torch_resizes_them():
    generator = np.random.default_rng(0)
    pairs = list(zip(random_masks(generator, 4, 300, 401), random_masks(generator, 4, 300, 401), strict=True))
    scores = scored(*((truth, drawn, False) for truth, drawn in pairs))
    for number, pair in enumerate(pairs):
        stacked = torch.from_numpy(np.stack(pair))[:, None].float()
        truth, drawn = F.interpolate(stacked, size=(480, 480), mode="nearest")[:, 0].bool()
        counts = scores.overlaps["stretched480"]
        assert counts.intersection[number] == (truth & drawn).sum()
        assert counts.union[number] == (truth | drawn).sum()
        assert counts.truth[number] == truth.sum()


def test_oneref_masks_equal_the_published_evaluation(fixtures):
    tensors = load_file(fixtures / "metrics/io.safetensors")
    meta = json.loads((fixtures / "metrics/meta.json").read_text())
    frame = MaskFrame(48, keeps_aspect=True, cells=12)
    truth = tensors["gt_mask"][:, 0].bool().numpy()
    # The mask that a system with 12 x 12 cells would store, at the size of the image.
    stored = F.interpolate((tensors["seg_logit"] > 0).float(), size=(48, 48), mode="nearest")[:, 0].bool().numpy()
    counts = [frame.overlap(encode_mask(true), encode_mask(drawn)) for true, drawn in zip(truth, stored, strict=True)]
    assert [one.intersection for one in counts] == tensors["mask_intersection"].int().tolist()
    assert [one.union for one in counts] == tensors["mask_union"].int().tolist()
    ious = [one.intersection / one.union for one in counts]
    assert np.mean(ious) == pytest.approx(meta["mask_miou"], abs=1e-6)
    assert sum(c.intersection for c in counts) / sum(c.union for c in counts) == pytest.approx(
        meta["mask_oiou"], abs=1e-6
    )


def published_oneref_counts(cosines: torch.Tensor, truth: np.ndarray) -> tuple[int, int]:
    """(intersection, union) as the published code has them, of cosines on 192 x 192 cells and a mask of the image."""
    height, width = truth.shape
    frame = Frame.fit(width, height, 384, 384)
    true = np.zeros((384, 384), dtype=bool)
    rows, columns = nearest_indices(height, frame.resized_height), nearest_indices(width, frame.resized_width)
    true[frame.top : frame.top + len(rows), frame.left : frame.left + len(columns)] = truth[rows][:, columns]
    sure = (cosines.sigmoid() - 0.5).relu()[None, None]
    drawn = F.interpolate(sure, size=(384, 384), mode="bilinear", align_corners=False)[0, 0].numpy() > 0
    return int((true & drawn).sum()), int((true | drawn).sum())


def test_oneref_metrics_from_stored_masks_are_close_to_those_from_the_cells_of_the_model():
    """The stored mask is the enlarged cosine above 0; the published one is thresholded first."""
    generator = np.random.default_rng(1)
    published, ours = [], []
    for truth in random_masks(generator, 12, 480, 640):
        noisy = F.interpolate(torch.from_numpy(truth)[None, None].float(), size=(144, 192), mode="area")[0, 0] - 0.5
        noisy += torch.from_numpy(generator.normal(scale=0.2, size=noisy.shape))
        cosines = torch.full((192, 192), -0.5)
        cosines[24:168] = F.avg_pool2d(noisy[None], 5, stride=1, padding=2)[0].float()
        drawn = Frame.fit(640, 480, 384, 384).masks_to_image(cosines[None])[0]
        published.append(published_oneref_counts(cosines, truth))
        counts = FRAMES["letterbox384"].overlap(encode_mask(truth), encode_mask(drawn))
        ours.append((counts.intersection, counts.union))
    ious = np.array([[i / u for i, u in counts] for counts in (published, ours)])
    assert np.abs(ious[0] - ious[1]).max() < 0.005
    assert abs(ious[0].mean() - ious[1].mean()) < 0.002


def test_oneref_boxes_are_cut_to_whole_pixels_and_to_the_letterbox():
    truth, found = (10.7, 20.2, 60.9, 90.1), (-200.0, -3.0, 700.0, 95.5)
    example = Example("0", "d", "s", "i", "i", 640, 480, "x", (Region(truth),))
    score = score_sample(example, Answer("0", "i", "x", 640, 480, (Target(found, 0.9),), False, None, "w"))
    whole = torch.tensor([10.0, 20.0, 10.0 + 50, 20.0 + 69])  # x, y, width and height without their fractions
    frame = Frame.fit(640, 480, 384, 384)
    in_frame = torch.from_numpy(frame.boxes_to_model(np.array([found]))).clamp(0, 384)
    expected = box_iou_pairs(in_frame, torch.from_numpy(frame.boxes_to_model(whole[None].numpy())))
    assert score.box_iou_oneref384 == pytest.approx(expected.item())
    assert score.box_iou != pytest.approx(expected.item())


def test_every_convention_reports_known_metrics_in_a_known_frame():
    scores = worked_example()
    for name, convention in CONVENTIONS.items():
        assert set(convention.metrics) <= set(METRICS)
        assert convention.frame in FRAMES
        assert set(measure(scores, name).metrics) <= set(convention.metrics if name != "original" else METRICS)


def test_conventions_are_chosen_by_name_and_the_default_is_always_there():
    assert choose_conventions([]) == ("original",)
    assert choose_conventions(["lavt480", "original", "lavt480"]) == ("original", "lavt480")
    assert choose_conventions(["gsva", "all"]) == tuple(CONVENTIONS)
    assert frames_of(("original", "cgformer")) == ("image",)
    with pytest.raises(UsageError, match="did you mean 'lavt480'"):
        choose_conventions(["lavt"])
