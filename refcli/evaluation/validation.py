"""Validation during training: boxes, masks and existence are scored in the model frame."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from refcli.contracts.batch import Batch
from refcli.contracts.prediction import Prediction
from refcli.errors import DataError
from refcli.geometry.box_tensors import box_iou_pairs, cxcywh_to_xyxy
from refcli.grounder import Grounder

HIT_IOU = 0.5
"""Lowest IoU of a hit (the field's Acc@0.5)."""


@dataclass
class ValidationScores:
    """One number per sample and metric, collected batch by batch."""

    box_iou: list[Tensor] = field(default_factory=list)
    mask_iou: list[Tensor] = field(default_factory=list)
    existence: list[Tensor] = field(default_factory=list)

    def metrics(self) -> dict[str, float]:
        """Means over samples; `score` is the mean of those among box_iou, mask_iou and existence_accuracy that exist.

        Raises:
            DataError: nothing could be scored.
        """
        metrics: dict[str, float] = {}
        for name, parts in (("box", self.box_iou), ("mask", self.mask_iou)):
            if parts:
                ious = torch.cat(parts)
                metrics[f"{name}_iou"] = round(ious.mean().item(), 5)
                metrics[f"{name}_accuracy"] = round((ious >= HIT_IOU).float().mean().item(), 5)
        if self.existence:
            metrics["existence_accuracy"] = round(torch.cat(self.existence).mean().item(), 5)
        chosen = [metrics[name] for name in ("box_iou", "mask_iou", "existence_accuracy") if name in metrics]
        if not chosen:
            raise DataError(
                "the validation splits have nothing that this head can be scored on",
                where="data.validation",
                hint="a head without an existence output needs samples with a target",
            )
        return {**metrics, "score": round(sum(chosen) / len(chosen), 5)}


def validate(grounder: Grounder, batches: Iterable[Batch], *, bf16: bool = False) -> dict[str, float]:
    """Score a grounder (in evaluation mode) on one pass over validation batches.

    The best-scored target is compared with the truth if there is a target, or the mask of everything if the head draws
    one; masks only if the data set has masks. The
    official metrics in image pixels are those of `refcli evaluate`; these are close enough to choose a checkpoint.

    Returns:
        box_iou, box_accuracy, mask_iou, mask_accuracy, existence_accuracy, if the head and the data have them, and
        `score`.
    """
    device = next(grounder.parameters()).device
    scores = ValidationScores()
    for batch in batches:
        here = batch.to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            prediction = grounder.predict(here.images, here.token_ids, here.token_is_pad)
        _add(scores, prediction, here)
    return scores.metrics()


def _add(scores: ValidationScores, prediction: Prediction, batch: Batch) -> None:
    truth = batch.targets
    rows = torch.arange(len(truth.exists), device=truth.exists.device)
    best = prediction.scores.argmax(1)
    has_union = prediction.union_mask_logits is not None
    if prediction.boxes_xyxy is not None and truth.exists.any():
        height, width = batch.images.shape[2:]
        sides = truth.boxes_cxcywh.new_tensor([width, height, width, height])
        truth_xyxy = cxcywh_to_xyxy(truth.boxes_cxcywh) * sides
        ious = box_iou_pairs(prediction.boxes_xyxy[rows, best].float(), truth_xyxy.float())
        scores.box_iou.append(ious[truth.exists].cpu())
    has_mask = truth.exists & truth.mask_is_known
    if prediction.mask_logits is not None and has_mask.any():
        logits = (_joined_masks(prediction) if has_union else prediction.mask_logits[rows, best])[has_mask].float()
        scores.mask_iou.append(mask_iou_pairs(logits, truth.masks[has_mask]).cpu())
    if prediction.existence is not None:
        states_target = prediction.existence >= prediction.existence_threshold
        scores.existence.append((states_target == truth.exists).float().cpu())


def _joined_masks(prediction: Prediction) -> Float[Tensor, "samples mask_height mask_width"]:
    """The largest logit of the union mask and of the targets in the answer, as `predict` joins them."""
    assert prediction.union_mask_logits is not None
    assert prediction.mask_logits is not None
    least = prediction.scores.amax(1, keepdim=True).clamp(max=prediction.score_threshold)
    is_kept = (prediction.scores >= least)[:, :, None, None]
    of_targets = prediction.mask_logits.masked_fill(~is_kept, -torch.inf).amax(1)
    return torch.maximum(prediction.union_mask_logits, of_targets)


def mask_iou_pairs(
    logits: Float[Tensor, "samples mask_height mask_width"], masks: Bool[Tensor, "samples height width"]
) -> Float[Tensor, " samples"]:
    """IoU of (resized logits > 0) with the true masks; 0 where both are empty."""
    resized = F.interpolate(logits[:, None], size=masks.shape[1:], mode="bilinear", align_corners=False)[:, 0] > 0
    intersection = (resized & masks).sum((1, 2))
    union = (resized | masks).sum((1, 2))
    return intersection / union.clamp(min=1)
