"""One sample's answer against its truth: the numbers that all metrics are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from refcli.contracts.example import RLE, Example
from refcli.contracts.prediction import Answer, Target
from refcli.errors import DataError
from refcli.evaluation.box_overlaps import (
    Box,
    box_area,
    enclosing_box,
    first_hit,
    greedy_matches,
    is_finite,
    overlap_matrices,
    pair_iou,
)
from refcli.evaluation.mask_frames import IMAGE, Overlap, overlap_in
from refcli.geometry.frame import Frame
from refcli.geometry.masks import union_masks

SCORE_THRESHOLD = 0.7
"""GREC counts boxes from this score on (the published gRefCOCO evaluator)."""
ONEREF_SIDE = 384
NO_OVERLAP = Overlap(0, 0, 0)


@dataclass(frozen=True, slots=True)
class SampleScore:
    """One sample, in pixels of the original image.

    Several referents, or several answered targets, count as one where not said otherwise: the enclosing box and the
    union of the masks. Boxes and masks are those of the answer before its existence gate, as far as it holds them;
    `says_none` is the gate. A box that is not finite is no box; a score that is not a number is below every other.
    """

    id: str
    image: str
    kind: str
    num_words: int
    num_targets: int
    """Regions that the expression means; 0 where it means nothing."""
    box_share: float
    """Part of the image that the truth's enclosing box takes; NaN where nothing is meant."""
    error: str | None
    """Why there is no answer."""
    counts: bool
    """False: the sample is in no figure."""
    says_none: bool
    """The answer is "no target", or has none."""
    knows_existence: bool
    """The system gave a probability of "no target"."""
    no_target_score: float
    """This probability; NaN where there is none."""
    num_found: int
    num_drawn: int
    """Answered targets that have a mask."""
    num_from_mask: int
    """Answered targets whose box is the tight box of their mask: the system says no box of its own."""
    box_iou: float
    """NaN where the sample has no target."""
    box_iou_oneref384: float
    """The same as OneRef's evaluation counts it (see `refcli.evaluation.conventions`)."""
    kept: int
    """Boxes of GREC: with enough score, none after "no target"."""
    matched_iou: int
    matched_giou: int
    """Kept boxes that greedy matching pairs with a region at 0.5."""
    rank_any: int
    rank_union: int
    """Place by score, from 1, of the first box that hits any region, or the box around all; 0: none does."""
    truth_has_masks: bool
    """Every region has a mask; True where there is none."""
    overlaps: Mapping[str, Overlap] = field(default_factory=dict)
    """Pixel counts per frame; zeros where the truth has no masks."""

    @property
    def has_target(self) -> bool:
        """Whether the expression means something."""
        return self.num_targets > 0

    @property
    def mask_is_known(self) -> bool:
        """Whether both sides have masks."""
        return self.truth_has_masks and self.num_drawn == self.num_found

    @property
    def mask_iou(self) -> float:
        """In pixels of the image, before the gate; 1 for two empty masks, NaN where nothing is meant or known."""
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
    ungated: Answer,
    *,
    frames: tuple[str, ...] = (IMAGE,),
    score_threshold: float = SCORE_THRESHOLD,
) -> SampleScore:
    """Compare an answer with the truth.

    Args:
        example: the truth.
        ungated: the answer, with its targets even where it says "no target" if the system has them.
        frames: where masks are compared.
        score_threshold: GREC's.

    Raises:
        DataError: the picture, or a mask of the answer, does not have the size that the data set says.
    """
    _check_sizes(example, ungated)
    boxes = [target.box_xyxy for target in ungated.targets]
    finite = [box for box in boxes if is_finite(box)]
    answer_box = enclosing_box(finite)
    drawn = [target.mask for target in ungated.targets if target.mask is not None]
    says_none = ungated.no_target or not ungated.targets
    kept = [] if says_none else [t.box_xyxy for t in ungated.targets if t.score >= score_threshold]
    matched_iou, matched_giou = _matches(kept, example)
    rank_any, rank_union = _ranks(ungated.targets, example)
    box_iou, oneref_iou = _box_ious(example, answer_box)
    return SampleScore(
        id=example.id,
        image=example.image,
        kind=example.kind or "",
        num_words=len(example.expression.split()),
        num_targets=len(example.regions),
        box_share=_box_share(example),
        error=None,
        counts=True,
        says_none=says_none,
        knows_existence=ungated.no_target_score is not None,
        no_target_score=float("nan") if ungated.no_target_score is None else ungated.no_target_score,
        num_found=len(ungated.targets),
        num_drawn=len(drawn),
        num_from_mask=sum(target.box_is_from_mask for target in ungated.targets),
        box_iou=box_iou,
        box_iou_oneref384=oneref_iou,
        kept=len(kept),
        matched_iou=matched_iou,
        matched_giou=matched_giou,
        rank_any=rank_any,
        rank_union=rank_union,
        truth_has_masks=_truth_has_masks(example),
        overlaps=_overlaps(example, drawn, frames),
    )


def score_unanswered(example: Example, error: str, *, counts: bool, frames: tuple[str, ...] = (IMAGE,)) -> SampleScore:
    """A sample without a usable answer: in no figure, or (`counts`) wrong in every figure.

    Wrong means: no box and an empty mask where something is meant, "there is something" where nothing is.
    """
    nothing = float("nan") if not example.regions else 0.0
    return SampleScore(
        id=example.id,
        image=example.image,
        kind=example.kind or "",
        num_words=len(example.expression.split()),
        num_targets=len(example.regions),
        box_share=_box_share(example),
        error=error,
        counts=counts,
        says_none=bool(example.regions),
        knows_existence=True,
        no_target_score=float("nan"),
        num_found=0,
        num_drawn=0,
        num_from_mask=0,
        box_iou=nothing,
        box_iou_oneref384=nothing,
        kept=int(not example.regions),
        matched_iou=0,
        matched_giou=0,
        rank_any=0,
        rank_union=0,
        truth_has_masks=_truth_has_masks(example),
        overlaps=_overlaps(example, [], frames),
    )


def _check_sizes(example: Example, answer: Answer) -> None:
    if (answer.width, answer.height) != (example.width, example.height):
        raise DataError(
            f"the picture is {answer.width} x {answer.height}, the data says {example.width} x {example.height}",
            where=example.id,
            hint="prepare the data again from the same pictures",
        )
    for target in answer.targets:
        if target.mask is not None and tuple(target.mask.size) != (example.height, example.width):
            height, width = target.mask.size
            raise DataError(
                f"a mask is {width} x {height}, the data says {example.width} x {example.height}",
                where=example.id,
                hint="masks are in pixels of the original image",
            )


def _truth_has_masks(example: Example) -> bool:
    return all(region.mask is not None for region in example.regions)


def _truth_box(example: Example) -> Box | None:
    return enclosing_box([region.box_xyxy for region in example.regions])


def _box_share(example: Example) -> float:
    box = _truth_box(example)
    return float("nan") if box is None else box_area(box) / (example.width * example.height)


def _box_ious(example: Example, found: Box | None) -> tuple[float, float]:
    """IoU of the enclosing boxes, plain and as OneRef counts: truth in whole x, y, width, height; answer clipped."""
    truth = _truth_box(example)
    if truth is None:
        return float("nan"), float("nan")
    if found is None:
        return 0.0, 0.0
    x, y = math.trunc(truth[0]), math.trunc(truth[1])
    whole = (x, y, x + math.trunc(truth[2] - truth[0]), y + math.trunc(truth[3] - truth[1]))
    frame = Frame.fit(example.width, example.height, ONEREF_SIDE, ONEREF_SIDE)
    left, top = -frame.left / frame.ratio, -frame.top / frame.ratio
    side = ONEREF_SIDE / frame.ratio
    x1, x2 = (min(max(edge, left), left + side) for edge in found[::2])
    y1, y2 = (min(max(edge, top), top + side) for edge in found[1::2])
    return pair_iou(truth, found), pair_iou(whole, (x1, y1, x2, y2))


def _matches(kept: list[Box], example: Example) -> tuple[int, int]:
    if not kept or not example.regions:
        return 0, 0
    iou, giou = overlap_matrices(kept, [region.box_xyxy for region in example.regions])
    return greedy_matches(iou), greedy_matches(giou)


def _ranks(targets: tuple[Target, ...], example: Example) -> tuple[int, int]:
    """Ranks of the first hits; answers of equal score keep their order."""
    together = _truth_box(example)
    if not targets or together is None:
        return 0, 0
    order = np.argsort([-target.score for target in targets], kind="stable")  # NaN comes last
    boxes = [targets[place].box_xyxy for place in order]
    iou, _ = overlap_matrices(boxes, [*(region.box_xyxy for region in example.regions), together])
    return first_hit(iou[:, :-1]), first_hit(iou[:, -1:])


def _overlaps(example: Example, drawn: list[RLE], frames: tuple[str, ...]) -> dict[str, Overlap]:
    if not _truth_has_masks(example):
        return dict.fromkeys(frames, NO_OVERLAP)
    masks = [region.mask for region in example.regions if region.mask is not None]
    truth = union_masks(masks) if masks else None
    found = union_masks(drawn) if drawn else None
    return {frame: overlap_in(frame, truth, found) for frame in frames}
