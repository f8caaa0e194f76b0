"""Calibration of thresholds: of existence, which separates "found" from "no target", and of the scores of targets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float

from refcli.config.schema import ModelSettings
from refcli.contracts.batch import Batch
from refcli.errors import ConfigError, DataError
from refcli.evaluation.box_matches import greedy_matches
from refcli.geometry.box_tensors import cxcywh_to_xyxy
from refcli.geometry.boxes import overlap_matrices
from refcli.grounder import Grounder


@dataclass(frozen=True)
class Calibrated:
    """A threshold on the existence probability, and its accuracies on the samples that it was chosen on."""

    threshold: float
    t_acc: float
    """Share of the samples with a target that pass."""
    n_acc: float
    """Share of the samples without a target that do not pass."""


def calibrate_grounder(
    grounder: Grounder, batches: Iterable[Batch], *, min_t_acc: float, bf16: bool = False
) -> Calibrated:
    """Choose the threshold of a grounder on one pass over validation batches; see `calibrate_existence`.

    Raises:
        ConfigError: the head has no existence output.
        DataError: all samples have a target, or none has one.
    """
    existence, has_target = collect_existence(grounder, batches, bf16=bf16)
    threshold = calibrate_existence(existence, has_target, min_t_acc=min_t_acc)
    passes = existence >= threshold
    return Calibrated(threshold, float(passes[has_target].mean()), float((~passes)[~has_target].mean()))


@torch.inference_mode()
def collect_existence(
    grounder: Grounder, batches: Iterable[Batch], *, bf16: bool = False
) -> tuple[Float[np.ndarray, " samples"], Bool[np.ndarray, " samples"]]:
    """The existence probability of every sample, and whether it has a target; puts the grounder into evaluation mode.

    Raises:
        ConfigError: the head has no existence output.
    """
    grounder.eval()
    device = next(grounder.parameters()).device
    found: list[np.ndarray] = []
    truth: list[np.ndarray] = []
    for batch in batches:
        here = batch.to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            existence = grounder.predict(here.images, here.token_ids, here.token_is_pad).existence
        if existence is None:
            raise ConfigError("the head has no existence output to calibrate", where="model.head.settings.existence")
        found.append(existence.double().cpu().numpy())
        truth.append(batch.targets.exists.cpu().numpy())
    return np.concatenate(found), np.concatenate(truth)


def with_threshold(settings: ModelSettings, threshold: float) -> ModelSettings:
    """The same model with another existence threshold."""
    head = settings.head
    return settings.model_copy(
        update={"head": head.model_copy(update={"settings": {**head.settings, "existence_threshold": threshold}})}
    )


def with_score_threshold(settings: ModelSettings, threshold: float) -> ModelSettings:
    """The same model with another score threshold."""
    head = settings.head
    return settings.model_copy(
        update={"head": head.model_copy(update={"settings": {**head.settings, "score_threshold": threshold}})}
    )


def calibrate_existence(
    existence: Float[np.ndarray, " samples"], has_target: Bool[np.ndarray, " samples"], *, min_t_acc: float
) -> float:
    """The existence probability below which the answer should be "no target".

    Of all thresholds that at least `min_t_acc` of the samples with a target pass (T-acc), the one with the largest sum
    of T-acc and N-acc (the share of the samples without a target that do not pass).

    Raises:
        DataError: all samples have a target, or none has one.
    """
    if has_target.all() or not has_target.any():
        raise DataError(
            "a threshold needs samples with and without a target",
            where="calibration split",
            hint="choose a split with no-target expressions",
        )
    there, absent = np.sort(existence[has_target]), np.sort(existence[~has_target])
    levels = np.unique(np.concatenate([[0.0, 1.0], existence]))
    candidates = (levels[:-1] + levels[1:]) / 2
    t_acc = 1 - np.searchsorted(there, candidates, side="left") / len(there)
    n_acc = np.searchsorted(absent, candidates, side="left") / len(absent)
    return float(candidates[np.argmax(np.where(t_acc >= min_t_acc, t_acc + n_acc, -1.0))])


@dataclass(frozen=True)
class CalibratedScores:
    """A threshold on the scores of targets, and its accuracy on the samples that it was chosen on."""

    threshold: float
    exact_sets: float
    """Share of the samples whose kept boxes are exactly the true ones (GREC's Pr at IoU 0.5)."""


@torch.inference_mode()
def calibrate_scores(
    grounder: Grounder, batches: Iterable[Batch], *, existence_threshold: float, bf16: bool = False
) -> CalibratedScores:
    """Choose the score that a target must have on one pass over validation batches that have regions.

    Every sample is right for one range of thresholds; the result lies in the most ranges. Boxes are compared in the
    model frame.

    Raises:
        ConfigError: the head has no boxes.
    """
    grounder.eval()
    device = next(grounder.parameters()).device
    ranges: list[tuple[float, float]] = []
    for batch in batches:
        here = batch.to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            prediction = grounder.predict(here.images, here.token_ids, here.token_is_pad)
        regions = batch.targets.regions
        if prediction.boxes_xyxy is None or regions is None:
            raise ConfigError("the head has no boxes whose scores can be calibrated", where="model.head.name")
        height, width = batch.images.shape[2:]
        scale = torch.tensor([width, height, width, height])
        boxes, scores = prediction.boxes_xyxy.float().cpu().numpy(), prediction.scores.double().cpu().numpy()
        truth = (cxcywh_to_xyxy(regions.boxes_cxcywh) * scale).numpy()
        gated = np.zeros(len(scores), dtype=bool)
        if prediction.existence is not None:
            gated = prediction.existence.double().cpu().numpy() < existence_threshold
        for row, real in enumerate(regions.is_real.numpy()):
            ranges.append(right_thresholds(scores[row], boxes[row], truth[row][real], says_none=bool(gated[row])))
    return best_threshold(np.array(ranges).reshape(-1, 2))


def right_thresholds(
    scores: Float[np.ndarray, " found"],
    boxes_xyxy: Float[np.ndarray, "found 4"],
    true_xyxy: Float[np.ndarray, "truth 4"],
    *,
    says_none: bool,
) -> tuple[float, float]:
    """The thresholds low < t <= high at which the boxes with a score >= t are exactly the true ones; (1, 0): none.

    Args:
        scores: of the boxes, in any order.
        boxes_xyxy: the answered boxes.
        true_xyxy: the true boxes; none: no target.
        says_none: whether the system answers "no target" whatever the scores.
    """
    order = np.argsort(-scores, kind="stable")
    count = len(true_xyxy)
    never = (1.0, 0.0)
    if says_none:
        return never if count else (0.0, 1.0)
    if not count:
        return float(scores[order[0]]), 1.0
    kept = order[:count]
    found, true = ([(x1, y1, x2, y2) for x1, y1, x2, y2 in part.tolist()] for part in (boxes_xyxy[kept], true_xyxy))
    ious, _ = overlap_matrices(found, true)
    if len(kept) < count or greedy_matches(ious) < count:
        return never
    following = float(scores[order[count]]) if len(order) > count else 0.0
    return following, float(scores[order[count - 1]])


def best_threshold(ranges: Float[np.ndarray, "samples 2"]) -> CalibratedScores:
    """The threshold inside the most ranges low < t <= high, halfway between the levels around it.

    Raises:
        DataError: there are no samples.
    """
    if not len(ranges):
        raise DataError("a threshold needs samples", where="calibration split")
    low, high = np.sort(ranges[ranges[:, 0] < ranges[:, 1]], axis=0).T
    levels = np.unique(np.concatenate([[0.0, 1.0], low, high]))
    candidates = (levels[:-1] + levels[1:]) / 2
    num_right = np.searchsorted(low, candidates, side="left") - np.searchsorted(high, candidates, side="left")
    best = int(np.argmax(num_right))
    return CalibratedScores(float(candidates[best]), float(num_right[best] / len(ranges)))
