"""Convert predictions in the model frame to answers in image pixels."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from refcli.contracts.example import RLE
from refcli.contracts.prediction import Answer, FramedTarget, NoTargetSource, Prediction, Target
from refcli.data.reading.images import LARGE_PIXELS
from refcli.geometry.frame import Frame
from refcli.geometry.masks import encode_columns, encode_mask, mask_box, rle_area
from refcli.inference.requests import Request


def prediction_on_cpu(prediction: Prediction) -> Prediction:
    """The same prediction as fp32 on the CPU."""

    def fetch(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor.detach().to(device="cpu", dtype=torch.float32)

    scores = fetch(prediction.scores)
    assert scores is not None
    return Prediction(
        boxes_xyxy=fetch(prediction.boxes_xyxy),
        scores=scores,
        mask_logits=fetch(prediction.mask_logits),
        existence=fetch(prediction.existence),
        existence_threshold=prediction.existence_threshold,
        score_threshold=prediction.score_threshold,
        union_mask_logits=fetch(prediction.union_mask_logits),
    )


class _Row(NamedTuple):
    """The prediction for one pair, reduced to the targets that are part of the answer."""

    scores: torch.Tensor
    boxes_xyxy: torch.Tensor | None
    mask_logits: torch.Tensor | None
    union_mask_logits: torch.Tensor | None

    @classmethod
    def of(cls, prediction: Prediction, row: int) -> _Row:
        """The targets with a sufficient score, best first, and the best one in any case; without a threshold, all."""
        scores = prediction.scores[row]
        chosen = torch.arange(len(scores))
        if prediction.score_threshold:
            ranked = scores.argsort(descending=True, stable=True)
            chosen = ranked[: max(int((scores >= prediction.score_threshold).sum()), 1)]

        def kept(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor[row][chosen]

        union = prediction.union_mask_logits
        boxes, masks = kept(prediction.boxes_xyxy), kept(prediction.mask_logits)
        return cls(scores[chosen], boxes, masks, None if union is None else union[row])


def raw_answer(prediction: Prediction, row: int, frame: Frame, request: Request, weights: str) -> Answer:
    """The model's answer to one pair, in image pixels; it keeps its targets even if the model decides "no target".

    `no_target` is True if the existence probability is below the model's threshold, or if a model without boxes gives
    only empty masks (they are then the `candidates`). Boxes are clipped to the image; a model without boxes gets the
    tight box of each mask.
    """
    own = _Row.of(prediction, row)
    scores, boxes = own.scores, own.boxes_xyxy
    existence = None if prediction.existence is None else float(prediction.existence[row])
    numbers = [scores] if boxes is None else [scores, boxes]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in numbers) or existence != existence:
        return failed_answer(request, "the model returned numbers that are not finite", weights, frame)
    masks = _masks(own.mask_logits, frame, len(scores))
    proposed = _targets(boxes, masks, scores, frame, _framed(own, frame))
    targets = tuple(target for target in proposed if not target.box_is_from_mask or _is_drawn(target.mask))
    states_none = existence is not None and existence < prediction.existence_threshold
    source: NoTargetSource | None = "existence" if states_none else None if targets else "mask"
    return Answer(
        id=request.id,
        image=request.image,
        expression=request.expression,
        width=frame.image_width,
        height=frame.image_height,
        targets=targets,
        no_target=states_none or not targets,
        no_target_score=None if existence is None else 1.0 - existence,
        weights=weights,
        candidates=None if targets else proposed,
        no_target_source=source,
        mask=_union_mask(own, frame),
    )


def filter_targets(answer: Answer, min_score: float | None = None) -> Answer:
    """The answer that a user gets: no targets if the model decides "no target", and none below `min_score`.

    If no target is left, the proposals stay in `candidates`, which scoring needs.
    """
    if answer.error is not None:
        return answer
    targets = () if answer.no_target else answer.targets
    if min_score is not None:
        kept = tuple(target for target in targets if target.score >= min_score)
        mask = answer.mask if len(kept) == len(targets) else None
        answer, targets = replace(answer, mask=mask), kept
    if targets:
        return replace(answer, targets=targets)
    source: NoTargetSource = "existence" if answer.no_target else "min_score" if answer.targets else "mask"
    return replace(
        answer,
        targets=(),
        no_target=True,
        candidates=answer.proposals,
        no_target_source=answer.no_target_source or source,
    )


def failed_answer(request: Request, error: str, weights: str, frame: Frame | None = None) -> Answer:
    """The answer to a request that failed; its size is 0 if the image could not be read."""
    return Answer(
        id=request.id,
        image=request.image,
        expression=request.expression,
        width=frame.image_width if frame else 0,
        height=frame.image_height if frame else 0,
        targets=(),
        no_target=False,
        no_target_score=None,
        weights=weights,
        error=error,
    )


def _union_mask(own: _Row, frame: Frame) -> RLE | None:
    """The head's mask of everything, united with those of the targets; None if it draws none."""
    if own.union_mask_logits is None:
        return None
    logits = own.union_mask_logits[None]
    if own.mask_logits is not None:
        logits = torch.cat((logits, own.mask_logits)).amax(0, keepdim=True)
    return _masks(logits, frame, 1)[0]


def _masks(logits: torch.Tensor | None, frame: Frame, num_targets: int) -> list[RLE | None]:
    if logits is None:
        return [None] * num_targets
    height, width = frame.image_height, frame.image_width
    if height * width > LARGE_PIXELS:
        return [encode_columns(frame.mask_columns(plane), height, width) for plane in logits]
    return [encode_mask(mask) for mask in frame.masks_to_image(logits)]


def _framed(own: _Row, frame: Frame) -> list[FramedTarget]:
    num_targets = len(own.scores)
    boxes = [None] * num_targets if own.boxes_xyxy is None else map(_box, own.boxes_xyxy.numpy())
    is_drawn = None if own.mask_logits is None else (own.mask_logits > 0).numpy()
    masks = [None] * num_targets if is_drawn is None else map(encode_mask, is_drawn)
    size = (frame.model_height, frame.model_width)
    return [FramedTarget(size, box, mask) for box, mask in zip(boxes, masks, strict=True)]


def _targets(
    boxes: torch.Tensor | None,
    masks: list[RLE | None],
    scores: torch.Tensor,
    frame: Frame,
    framed: list[FramedTarget],
) -> tuple[Target, ...]:
    if boxes is not None:
        in_image = frame.boxes_to_image(boxes.numpy().astype(np.float64))
        return tuple(
            Target(_box(box), float(score), mask, frame=one)
            for box, score, mask, one in zip(in_image, scores, masks, framed, strict=True)
        )
    return tuple(
        Target(mask_box(mask), float(score), mask, box_is_from_mask=True, frame=one)
        for score, mask, one in zip(scores, masks, framed, strict=True)
        if mask is not None
    )


def _is_drawn(mask: RLE | None) -> bool:
    return mask is not None and rle_area(mask) > 0


def _box(values: np.ndarray) -> tuple[float, float, float, float]:
    left, top, right, bottom = (float(value) for value in values)
    return left, top, right, bottom
