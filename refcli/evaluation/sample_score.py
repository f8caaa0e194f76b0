"""The score of one sample: its answer compared with its truth, in the numbers that all metrics are computed from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from refcli.contracts.example import RLE, Example
from refcli.contracts.prediction import Answer, FramedTarget, Target
from refcli.errors import DataError
from refcli.evaluation.mask_frames import IMAGE, MaskOverlap, ModelMask, overlap_in
from refcli.geometry.boxes import BoxXYXY, box_area, box_iou, enclosing_box, is_finite, overlap_matrices
from refcli.geometry.frame import Frame
from refcli.geometry.masks import union_masks

SCORE_THRESHOLD = 0.7
"""Lowest score of the boxes that GREC counts (the published gRefCOCO evaluator)."""
MATCH_OVERLAP = 0.5
"""A box is found if its IoU (GIoU) is at least this (every paper of the field)."""
ONEREF_SIDE = 384
NO_OVERLAP = MaskOverlap(0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleScore:
    """One sample, in pixels of the original image.

    Several true or answered targets count as one unless stated otherwise: the enclosing box and the union of the
    masks. Boxes and masks are those of the answer before its existence gate, if it has them; `says_none` is the gate.
    A box that is not finite is ignored; a score that is not a number ranks last. If the size of the image is unknown,
    the answer's is used; masks have their own.
    """

    id: str
    image: str
    kind: str
    num_words: int
    num_targets: int
    """Regions that the expression refers to; 0 without a target."""
    box_share: float
    """Share of the image that the true enclosing box covers; NaN without a target, or if the size is unknown."""
    error: str | None = None
    """Why there is no answer."""
    counts: bool = True
    """Whether the sample is in the metrics."""
    says_none: bool
    """The answer is "no target" or, if the system states nothing about existence, has no target."""
    states_none: bool | None = None
    """The system's statement about existence, regardless of its mask: True is "no target"; None: it states nothing."""
    knows_existence: bool
    """Whether the system gave a probability of "no target"."""
    no_target_score: float = float("nan")
    """This probability; NaN if there is none."""
    num_found: int = 0
    num_drawn: int = 0
    """Number of answered targets that have a mask."""
    num_from_mask: int = 0
    """Number of those whose box is the tight box of the mask: the system gives no box of its own."""
    num_framed: int = 0
    """Number of answered targets that are known in the model frame, including its padding."""
    is_gated: bool = False
    """There is a target, the answer is "no target", and its candidates are unknown."""
    box_iou: float
    """NaN without a target."""
    box_iou_oneref384: float
    """The same as OneRef's evaluation counts it (see `refcli.evaluation.metrics.conventions`); NaN also if the size of
    the image is unknown."""
    kept: int
    """Boxes of GREC: those with a sufficient score, none after "no target"."""
    matched_iou: int = 0
    matched_giou: int = 0
    """Kept boxes that greedy matching pairs with a region at 0.5."""
    rank_any: int = 0
    rank_union: int = 0
    """Rank by score, from 1, of the first box that hits any region, or the box around all; 0: none does."""
    truth_has_masks: bool
    """Whether every region has a mask; True without regions."""
    overlaps: Mapping[str, MaskOverlap] = field(default_factory=dict)
    """Pixel counts per frame; zeros if the truth has no masks."""

    @property
    def has_target(self) -> bool:
        """Whether the expression refers to anything."""
        return self.num_targets > 0

    @property
    def mask_is_known(self) -> bool:
        """Whether both sides have masks."""
        return self.truth_has_masks and self.num_drawn == self.num_found

    @property
    def mask_iou(self) -> float:
        """In pixels of the image, before the gate; 1 for two empty masks, NaN without a target or known masks."""
        if not (self.has_target and self.mask_is_known):
            return float("nan")
        return self.mask_intersection / self.mask_union if self.mask_union else 1.0

    @property
    def mask_intersection(self) -> int:
        """In pixels of the image."""
        return self.overlaps[IMAGE].intersection

    @property
    def mask_union(self) -> int:
        """In pixels of the image."""
        return self.overlaps[IMAGE].union


def score_sample(
    example: Example,
    answer: Answer,
    *,
    frames: tuple[str, ...] = (IMAGE,),
    score_threshold: float = SCORE_THRESHOLD,
) -> SampleScore:
    """Compare an answer with the truth.

    Args:
        example: the truth.
        answer: the answer; its candidates before a "no target" are scored, if it has them.
        frames: where masks are compared.
        score_threshold: lowest score of the boxes that GREC counts.

    Raises:
        DataError: the image, or a mask of the answer, has another size than the data set states; or a mask of the
            truth is damaged.
    """
    width, height = _size_of(example, answer)
    proposed = answer.proposals
    boxes = [target.box_xyxy for target in proposed]
    finite = [box for box in boxes if is_finite(box)]
    drawn = [target.mask for target in proposed if target.mask is not None]
    none = says_none(answer)
    kept = [] if none else [t.box_xyxy for t in answer.targets if t.score >= score_threshold]
    matched_iou, matched_giou = _matches(kept, example)
    rank_any, rank_union = _ranks(proposed, example)
    framed = [target.frame for target in proposed if target.frame is not None]
    in_frame = framed if len(framed) == len(proposed) else []
    return SampleScore(
        id=example.id,
        image=example.image,
        kind=example.kind or "",
        num_words=len(example.expression.split()),
        num_targets=len(example.regions),
        box_share=_box_share(example, width, height),
        says_none=none,
        states_none=_states_none(answer),
        knows_existence=answer.no_target_score is not None,
        no_target_score=float("nan") if answer.no_target_score is None else answer.no_target_score,
        num_found=len(proposed),
        num_drawn=len(drawn),
        num_from_mask=sum(target.box_is_from_mask for target in proposed),
        num_framed=len(framed),
        is_gated=bool(example.regions) and answer.no_target and not answer.targets and answer.candidates is None,
        box_iou=_box_iou(example, enclosing_box(finite)),
        box_iou_oneref384=_box_iou_oneref384(example, enclosing_box(finite), in_frame, width, height),
        kept=len(kept),
        matched_iou=matched_iou,
        matched_giou=matched_giou,
        rank_any=rank_any,
        rank_union=rank_union,
        truth_has_masks=_truth_has_masks(example),
        overlaps=_overlaps(example, drawn, frames, in_frame),
    )


def says_none(answer: Answer) -> bool:
    """Whether an answer is "no target": because its system states so, or else because it has no target."""
    stated = _states_none(answer)
    return answer.no_target or not answer.targets if stated is None else stated


def _states_none(answer: Answer) -> bool | None:
    """The system's statement about existence; see `SampleScore.states_none`."""
    if answer.no_target and answer.no_target_source != "mask":
        return True
    return None if answer.no_target_score is None or not answer.proposals else False


def score_unanswered(example: Example, error: str, *, counts: bool, frames: tuple[str, ...] = (IMAGE,)) -> SampleScore:
    """The score of a sample without a usable answer: excluded from the metrics, or (`counts`) wrong in all of them.

    Wrong means: no box and an empty mask if there is a target; a target if there is none.
    """
    missed = float("nan") if not example.regions else 0.0
    return SampleScore(
        id=example.id,
        image=example.image,
        kind=example.kind or "",
        num_words=len(example.expression.split()),
        num_targets=len(example.regions),
        box_share=_box_share(example, example.width, example.height),
        error=error,
        counts=counts,
        says_none=bool(example.regions),
        knows_existence=True,
        box_iou=missed,
        box_iou_oneref384=missed,
        kept=int(not example.regions),
        truth_has_masks=_truth_has_masks(example),
        overlaps=_overlaps(example, [], frames),
    )


def _size_of(example: Example, answer: Answer) -> tuple[int, int]:
    """(width, height) of the image, from the truth or else from the answer; 0 if unknown.

    Raises:
        DataError: truth and answer disagree.
    """
    width, height = _known_size(example)
    if width and answer.width and answer.height and (answer.width, answer.height) != (width, height):
        raise DataError(
            f"the image is {answer.width} x {answer.height}, but {width} x {height} in the data",
            where=example.id,
            hint="prepare the data again from the same images; --check-images lists those of another size",
        )
    width, height = (width, height) if width else (max(answer.width, 0), max(answer.height, 0))
    for target in answer.proposals:
        if width and height and target.mask is not None and tuple(target.mask.size) != (height, width):
            raise DataError(
                f"a mask is {target.mask.size[1]} x {target.mask.size[0]}, but the image {width} x {height}",
                where=example.id,
                hint="masks are in pixels of the original image",
            )
    return width, height


def _known_size(example: Example) -> tuple[int, int]:
    """(width, height) of the truth: of the image or, if that is unknown, of a mask; (0, 0) if neither is known."""
    if example.width > 0 and example.height > 0:
        return example.width, example.height
    height, width = next((region.mask.size for region in example.regions if region.mask is not None), (0, 0))
    return width, height


def _truth_has_masks(example: Example) -> bool:
    return all(region.mask is not None for region in example.regions)


def _truth_box(example: Example) -> BoxXYXY | None:
    return enclosing_box([region.box_xyxy for region in example.regions])


def _box_share(example: Example, width: int, height: int) -> float:
    box = _truth_box(example)
    return float("nan") if box is None or width <= 0 or height <= 0 else box_area(box) / (width * height)


def _box_iou(example: Example, found: BoxXYXY | None) -> float:
    truth = _truth_box(example)
    if truth is None:
        return float("nan")
    return 0.0 if found is None else box_iou(truth, found)


def _box_iou_oneref384(
    example: Example, found: BoxXYXY | None, in_frame: Sequence[FramedTarget], width: int, height: int
) -> float:
    """Box IoU as OneRef counts: truth in whole x, y, width, height; answer clipped to the letterbox, not the image."""
    truth = _truth_box(example)
    if truth is None or width <= 0 or height <= 0:
        return float("nan")
    if found is None:
        return 0.0
    found = _box_around_image(in_frame, width, height) or found
    x, y = math.trunc(truth[0]), math.trunc(truth[1])
    whole = (x, y, x + math.trunc(truth[2] - truth[0]), y + math.trunc(truth[3] - truth[1]))
    frame = Frame.fit(width, height, ONEREF_SIDE, ONEREF_SIDE)
    left, top = -frame.left / frame.ratio, -frame.top / frame.ratio
    side = ONEREF_SIDE / frame.ratio
    x1, x2 = (min(max(edge, left), left + side) for edge in found[::2])
    y1, y2 = (min(max(edge, top), top + side) for edge in found[1::2])
    return box_iou(whole, (x1, y1, x2, y2))


def _box_around_image(in_frame: Sequence[FramedTarget], width: int, height: int) -> BoxXYXY | None:
    """The enclosing box of the model's own boxes, in pixels of the image; it may extend over the padding."""
    boxes = []
    for target in in_frame:
        if target.box_xyxy is not None and is_finite(target.box_xyxy):
            frame = Frame.fit(width, height, *target.size[::-1])
            x1, y1, x2, y2 = frame.boxes_around_image(np.array([target.box_xyxy]))[0].tolist()
            boxes.append((x1, y1, x2, y2))
    return enclosing_box(boxes)


def greedy_matches(overlaps: Float[np.ndarray, "found truth"]) -> int:
    """The number of pairs that are matched by taking the largest overlap of at least 0.5 repeatedly.

    The published GREC evaluator (gRefCOCO) matches this way. A maximum matching can find more pairs in a crowd.
    """
    left = overlaps.copy()
    num_pairs = 0
    while left.size and left.max() >= MATCH_OVERLAP:
        found, truth = np.unravel_index(left.argmax(), left.shape)
        left[found, :] = left[:, truth] = -np.inf
        num_pairs += 1
    return num_pairs


def first_hit(ious_by_rank: Float[np.ndarray, "found truth"]) -> int:
    """The rank (from 1) of the first box with an IoU of at least 0.5 with any true box; 0 if there is none."""
    hits = np.flatnonzero((ious_by_rank >= MATCH_OVERLAP).any(axis=1))
    return int(hits[0]) + 1 if len(hits) else 0


def _matches(kept: list[BoxXYXY], example: Example) -> tuple[int, int]:
    if not kept or not example.regions:
        return 0, 0
    iou, giou = overlap_matrices(kept, [region.box_xyxy for region in example.regions])
    return greedy_matches(iou), greedy_matches(giou)


def _ranks(targets: tuple[Target, ...], example: Example) -> tuple[int, int]:
    """Ranks of the first hits; targets of equal score keep their order."""
    together = _truth_box(example)
    if not targets or together is None:
        return 0, 0
    order = np.argsort([-target.score for target in targets], kind="stable")  # NaN comes last
    boxes = [targets[place].box_xyxy for place in order]
    iou, _ = overlap_matrices(boxes, [*(region.box_xyxy for region in example.regions), together])
    return first_hit(iou[:, :-1]), first_hit(iou[:, -1:])


def _overlaps(
    example: Example, drawn: Sequence[RLE], frames: tuple[str, ...], in_frame: Sequence[FramedTarget] = ()
) -> dict[str, MaskOverlap]:
    if not _truth_has_masks(example):
        return dict.fromkeys(frames, NO_OVERLAP)
    masks = [region.mask for region in example.regions if region.mask is not None]
    model_masks = [ModelMask(target.size, target.mask) for target in in_frame if target.mask is not None]
    try:
        truth = union_masks(masks) if masks else None
        found = union_masks(drawn) if drawn else None
        return {frame: overlap_in(frame, truth, found, model_masks) for frame in frames}
    except DataError as error:  # of a mask of the store: answers are checked when they are read
        error.where = error.where or f"{example.dataset}:{example.split}: {example.id}"
        raise
