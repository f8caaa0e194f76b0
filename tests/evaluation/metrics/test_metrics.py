"""Metrics follow their definitions, and equal the published code where it measures the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch.nn.functional as F
from safetensors.torch import load_file

from refcli.contracts.example import Example, Region
from refcli.contracts.prediction import Answer, Target
from refcli.errors import DataError
from refcli.evaluation.metrics.measure import measure
from refcli.evaluation.metrics.ratios import Ratio, intervals, share, values
from refcli.evaluation.sample_columns import ScoreColumns
from refcli.evaluation.sample_score import score_sample
from refcli.geometry.masks import encode_mask

SIDE = 100


def bitmap(*boxes, side=SIDE) -> np.ndarray:
    mask = np.zeros((side, side), dtype=bool)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = True
    return mask


def region(box, *, mask=True) -> Region:
    return Region(tuple(map(float, box)), encode_mask(bitmap(box)) if mask else None)


def target(box, *, mask=True) -> Target:
    return Target(tuple(map(float, box)), 0.9, encode_mask(bitmap(box)) if mask else None)


def example(*regions: Region, kind=None, ident="0", image="i.jpg") -> Example:
    return Example(ident, "d", "s", image, image, SIDE, SIDE, "x", regions, kind)


def answer(*targets: Target, says_none=False) -> Answer:
    return Answer("0", "i.jpg", "x", SIDE, SIDE, targets, says_none, None, "w")


def metrics(*pairs) -> dict[str, float]:
    return dict(measure(ScoreColumns.of(score_sample(truth, predicted) for truth, predicted in pairs)).metrics)


LEFT, RIGHT = (0, 0, 50, 100), (50, 0, 100, 100)
MISPLACED = (20, 0, 70, 100)  # IoU with LEFT: 30 / 70
SHIFTED = (10, 0, 60, 100)  # IoU with LEFT: 40 / 60


@pytest.fixture(scope="module")
def golden(fixtures):
    folder = fixtures / "metrics"
    return load_file(folder / "io.safetensors"), json.loads((folder / "meta.json").read_text())


def test_box_metrics_equal_the_published_evaluation(golden):
    tensors, meta = golden
    predicted = tensors["xyxy_pred"].double().clamp(0, 1) * SIDE
    truth = tensors["xyxy_gt"].double() * SIDE
    pairs = [
        (example(Region(tuple(true.tolist()))), answer(Target(tuple(box.tolist()), 1.0)))
        for true, box in zip(truth, predicted, strict=True)
    ]
    scores = ScoreColumns.of(score_sample(*pair) for pair in pairs)
    np.testing.assert_allclose(scores.box_iou, tensors["box_iou"].numpy(), atol=1e-6)
    found = measure(scores).metrics
    assert found["acc50"] == meta["accuracy_at_0_5"]
    assert found["box_miou"] == pytest.approx(meta["box_miou"], abs=1e-6)
    assert "mask_miou" not in found


def test_mask_metrics_equal_the_published_evaluation_on_the_same_bitmaps(golden):
    tensors, meta = golden
    # The published binarisation: threshold at the head's resolution, then enlarge and take what is not zero.
    sure = (tensors["seg_logit"].sigmoid() - 0.5).relu()
    truth = tensors["gt_mask"][:, 0].bool()
    side = truth.shape[-1]
    drawn = F.interpolate(sure, size=(side, side), mode="bilinear", align_corners=False)[:, 0] > 0
    box = (0.0, 0.0, 1.0, 1.0)
    scores = ScoreColumns.of(
        score_sample(
            Example(str(n), "d", "s", "i", "i", side, side, "x", (Region(box, encode_mask(true.numpy())),)),
            Answer(str(n), "i", "x", side, side, (Target(box, 1.0, encode_mask(mask.numpy())),), False, None, "w"),
        )
        for n, (true, mask) in enumerate(zip(truth, drawn, strict=True))
    )
    np.testing.assert_array_equal(scores.overlaps["image"].intersection, tensors["mask_intersection"].numpy())
    np.testing.assert_array_equal(scores.overlaps["image"].union, tensors["mask_union"].numpy())
    found = measure(scores).metrics
    assert found["mask_miou"] == pytest.approx(meta["mask_miou"], abs=1e-6)
    assert found["mask_oiou"] == pytest.approx(meta["mask_oiou"], abs=1e-6)
    assert found["pr50"] == pytest.approx((tensors["mask_iou"] >= 0.5).double().mean().item())


def test_accuracy_ignores_the_gate_and_the_gated_accuracy_does_not():
    found = metrics(
        (example(region(LEFT)), answer(target(LEFT))), (example(region(LEFT)), answer(target(LEFT), says_none=True))
    )
    assert found["acc50"] == 1.0
    assert found["acc50_gated"] == 0.5
    assert found["t_acc"] == 0.5
    assert found["mask_miou"] == 1.0


def test_thresholds_are_met_by_equality():
    half = (0, 0, 25, 100)  # IoU exactly 0.5 with LEFT
    found = metrics((example(region(LEFT)), answer(target(half))))
    assert (found["acc50"], found["acc60"], found["pr50"], found["pr60"]) == (1.0, 0.0, 1.0, 0.0)


def test_samples_without_a_target_are_in_no_box_or_mask_metric():
    targeted = (example(region(LEFT)), answer(target(SHIFTED)))
    empty = (example(), answer(target(RIGHT)))
    with_empty, without = metrics(targeted, empty), metrics(targeted)
    for name in ("acc50", "acc50_gated", "box_miou", "mask_miou", "mask_oiou", "pr50", "t_acc"):
        assert with_empty[name] == without[name]
    assert "n_acc" not in without
    assert with_empty["n_acc"] == 0.0


def test_several_targets_are_their_enclosing_box_and_the_union_of_their_masks():
    truth = example(region((0, 0, 10, 10)), region((90, 90, 100, 100)))
    together = Target((0.0, 0.0, 100.0, 100.0), 0.9, encode_mask(bitmap((0, 0, 10, 10), (90, 90, 100, 100))))
    apart = (target((90, 90, 100, 100)), target((0, 0, 10, 10)))
    for predicted in (answer(together), answer(*apart)):
        found = metrics((truth, predicted))
        assert found["box_miou"] == found["mask_miou"] == 1.0
    one = metrics((truth, answer(target((0, 0, 10, 10)))))
    assert one["box_miou"] == pytest.approx(0.01)
    assert one["mask_miou"] == pytest.approx(0.5)


def test_oiou_weighs_by_area_and_miou_does_not():
    small, big = (0, 0, 10, 10), (0, 0, 100, 100)
    found = metrics(
        (example(region(small)), answer(target((50, 50, 60, 60)))), (example(region(big)), answer(target(big)))
    )
    assert found["mask_miou"] == 0.5
    assert found["mask_oiou"] == pytest.approx(10_000 / 10_200)


def test_generalised_metrics_follow_the_published_table_of_cases():
    right_none = (example(), answer(target(LEFT), says_none=True))
    missed_none = (example(), answer(target((0, 0, 10, 10))))
    wrong_none = (example(region(LEFT)), answer(target(MISPLACED), says_none=True))
    found = (example(region(LEFT)), answer(target(SHIFTED)))
    found = metrics(right_none, missed_none, wrong_none, found)
    assert found["giou"] == pytest.approx((1 + 0 + 0 + 4000 / 6000) / 4)
    assert found["ciou"] == pytest.approx((0 + 0 + 0 + 4000) / (0 + 100 + 7000 + 6000))
    assert found["n_acc"] == 0.5
    assert found["t_acc"] == 0.5


def test_data_without_masks_and_models_without_masks_have_no_mask_metrics():
    for pair in (
        (example(region(LEFT, mask=False)), answer(target(LEFT))),
        (example(region(LEFT)), answer(target(LEFT, mask=False))),
        (example(region(LEFT), region(RIGHT, mask=False)), answer(target(LEFT))),
    ):
        assert not {"mask_miou", "mask_oiou", "pr50", "giou", "ciou"} & metrics(pair).keys()


def test_an_answer_without_any_target_scores_nothing_on_a_sample_that_has_one():
    found = metrics((example(region(LEFT)), answer(says_none=True)))
    assert (found["acc50"], found["box_miou"], found["mask_miou"], found["giou"]) == (0, 0, 0, 0)


def test_an_image_or_a_mask_of_another_size_than_the_data_states_is_refused():
    predicted = Answer("0", "i.jpg", "x", SIDE, SIDE + 1, (), True, None, "w")
    with pytest.raises(DataError, match="100 x 101"):
        score_sample(example(), predicted)
    small = Target((0.0, 0.0, 5.0, 5.0), 0.9, encode_mask(bitmap((0, 0, 5, 5), side=50)))
    with pytest.raises(DataError, match="a mask is 50 x 50, but the image 100 x 100"):
        score_sample(example(region(LEFT)), answer(small))


def test_boxes_that_are_not_finite_are_ignored():
    nothing = float("nan")
    lost = Target((nothing, 0.0, 50.0, 100.0), 0.9, encode_mask(bitmap(LEFT)))
    found = metrics((example(region(LEFT)), answer(lost)))
    assert (found["acc50"], found["box_miou"], found["recall1_any"], found["grec_pr_iou"]) == (0, 0, 0, 0)
    assert found["mask_miou"] == 1.0
    assert metrics((example(region(LEFT)), answer(lost, target(LEFT))))["box_miou"] == 1.0


def test_a_missing_mask_of_a_system_that_draws_masks_is_empty():
    drawn = (example(region(LEFT)), answer(target(LEFT)))
    left_out = (example(region(LEFT)), answer(target(LEFT, mask=False)))
    found = metrics(drawn, left_out)
    assert (found["mask_miou"], found["mask_oiou"], found["pr50"]) == (0.5, 0.5, 0.5)


def test_boxes_without_masks_and_expressions_without_a_target_give_no_mask_metrics():
    targeted = (example(region(LEFT, mask=False)), answer(target(LEFT)))
    empty = (example(), answer(says_none=True))
    assert not {"mask_miou", "giou", "ciou"} & metrics(targeted, empty).keys()


def test_no_target_and_no_answer_is_perfect_and_one_false_mask_is_not():
    right = (example(), answer(says_none=True))
    found = metrics(right, right)
    assert (found["giou"], found["ciou"], found["n_acc"]) == (1.0, 1.0, 1.0)
    assert not {"acc50", "mask_miou", "t_acc"} & found.keys()
    found = metrics(right, (example(), answer(target((0, 0, 10, 10)))))
    assert (found["giou"], found["ciou"], found["n_acc"]) == (0.5, 0.0, 0.5)


def test_two_empty_masks_of_a_target_agree():
    invisible = Region((0.0, 0.0, 1.0, 1.0), encode_mask(bitmap()))
    found = metrics((example(invisible), answer(Target((0.0, 0.0, 1.0, 1.0), 0.9, encode_mask(bitmap())))))
    assert (found["mask_miou"], found["mask_oiou"]) == (1.0, 1.0)


def test_shares_are_exact_over_many_samples():
    hits = np.arange(3_000_001) % 3 == 0
    assert values({"a": share(hits, np.ones_like(hits))}) == {"a": 1_000_001 / 3_000_001}


def test_intervals_contain_the_metric_and_shrink_with_more_images_but_not_with_more_expressions_about_one():
    random = np.random.default_rng(0)

    def width(num_images: int, questions: int) -> float:
        hits = np.repeat(random.random(num_images) < 0.7, questions)
        image = np.repeat(np.arange(num_images), questions)
        terms = {"acc": share(hits, np.ones_like(hits))}
        low, high = intervals(terms, image)["acc"]
        assert low <= values(terms)["acc"] <= high
        return high - low

    few = width(100, 1)
    assert width(100, 10) == pytest.approx(few, rel=0.3)
    assert width(10_000, 1) == pytest.approx(few / 10, rel=0.3)
    # The normal approximation of a binomial share: 2 * 1.96 * sqrt(p (1 - p) / n).
    assert few == pytest.approx(3.92 * np.sqrt(0.7 * 0.3 / 100), rel=0.2)


def test_intervals_leave_out_unmeasured_metrics():
    nothing = np.zeros(5)
    assert intervals({"n_acc": Ratio(nothing, nothing)}, np.arange(5)) == {}
    assert intervals({}, np.arange(0)) == {}
