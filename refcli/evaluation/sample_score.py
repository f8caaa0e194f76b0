"""The score of one sample: its answer compared with its truth, in the numbers that all metrics are computed from."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from refcli.contracts.example import RLE, Example
from refcli.contracts.prediction import SCORE_THRESHOLD, Answer, FramedTarget, Target
from refcli.errors import DataError
from refcli.evaluation.box_matches import (
    NO_MATCHES,
    Matches,
    best_matches,
    first_hit,
    greedy_matches,
    hits_by_rank,
    matches_in_order,
)
from refcli.evaluation.mask_frames import IMAGE, MaskOverlap, ModelMask, overlap_in
from refcli.geometry.boxes import BoxXYXY, box_area, box_iou, enclosing_box, is_finite, overlap_matrices
from refcli.geometry.frame import Frame
from refcli.geometry.masks import mask_iou_matrix, subtract_masks, union_masks

MOST_DETECTIONS = 100
"""Boxes of a sample that COCO counts, the best scores first."""
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
    box_side: float
    """Square root of the area of the true enclosing box, in pixels; NaN without a target."""
    expression: int
    """Hash of the expression: equal texts have equal numbers."""
    error: str | None = None
    """Why there is no answer."""
    counts: bool = True
    """Whether the sample is in the metrics."""
    is_parse_failure: bool = False
    """The text of the answer could not be parsed, which `error` explains; the sample counts as wrong."""
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
    box_iou_first: float
    """IoU of the answer's first box alone with the true enclosing box; NaN without a target."""
    hits_centre: bool = False
    """Whether the centre of the answered enclosing box lies in the true one, its edges included."""
    kept: int
    """Boxes of GREC: those with a sufficient score, none after "no target"."""
    matched_iou: int = 0
    matched_giou: int = 0
    """Kept boxes that greedy matching pairs with a region at 0.5."""
    matched_in_order50: int = 0
    matched_in_order: int = 0
    """Kept boxes that `matches_in_order` pairs with a region: at IoU 0.5, and at ten thresholds together."""
    matched_best50: int = 0
    matched_best: int = 0
    """The same for `best_matches`."""
    matched_masks: int = 0
    """Kept targets whose masks `best_matches` pairs with that of a region, at ten thresholds together."""
    best_score: float = 0.0
    """The highest score of a box; 0 without one."""
    box_scores: tuple[float, ...] = ()
    """Of at most 100 boxes, the highest first (COCO)."""
    box_hits: tuple[int, ...] = ()
    """For each of these boxes: the thresholds at which it is right, see `hits_by_rank`."""
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
    overlaps = _BoxOverlaps.of(proposed, example)
    kept = [] if none else [place for place, t in enumerate(answer.targets) if t.score >= score_threshold]
    of_kept = overlaps if answer.candidates is None else _BoxOverlaps.of(answer.targets, example)
    around, true_box = enclosing_box(finite), _truth_box(example)
    framed = [target.frame for target in proposed if target.frame is not None]
    in_frame = framed if len(framed) == len(proposed) else []
    pixels = _overlaps(example, drawn, frames, in_frame)
    union = pixels if answer.mask is None else _overlaps(example, [answer.mask], frames)
    return SampleScore(
        id=example.id,
        image=example.image,
        kind=example.kind or "",
        num_words=len(example.expression.split()),
        num_targets=len(example.regions),
        box_share=_box_share(example, width, height),
        box_side=_box_side(example),
        expression=expression_number(example.expression),
        says_none=none,
        states_none=_states_none(answer),
        knows_existence=answer.no_target_score is not None,
        no_target_score=float("nan") if answer.no_target_score is None else answer.no_target_score,
        num_found=len(proposed),
        num_drawn=len(drawn),
        num_from_mask=sum(target.box_is_from_mask for target in proposed),
        num_framed=len(framed),
        is_gated=bool(example.regions) and answer.no_target and not answer.targets and answer.candidates is None,
        box_iou=_box_iou(example, around),
        box_iou_oneref384=_box_iou_oneref384(example, around, in_frame, width, height),
        box_iou_first=float("nan") if true_box is None else overlaps.first_iou,
        hits_centre=around is not None and true_box is not None and _holds_centre(true_box, around),
        kept=len(kept),
        **of_kept.matches(kept),
        matched_masks=_mask_matches(example, [answer.targets[at] for at in kept], proposed, pixels[IMAGE]).at_ten,
        **overlaps.ranks(proposed),
        truth_has_masks=_truth_has_masks(example),
        overlaps=union,
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


def score_unanswered(
    example: Example,
    error: str,
    *,
    counts: bool,
    is_parse_failure: bool = False,
    frames: tuple[str, ...] = (IMAGE,),
) -> SampleScore:
    """The score of a sample without a usable answer: excluded from the metrics, or wrong in all of them.

    Wrong means: no box and an empty mask if there is a target; a target if there is none.

    Args:
        example: the truth.
        error: why there is no answer.
        counts: whether the sample counts, as wrong.
        is_parse_failure: the text of the answer could not be parsed; the sample counts in any case.
        frames: where masks are compared.
    """
    missed = float("nan") if not example.regions else 0.0
    return SampleScore(
        id=example.id,
        image=example.image,
        kind=example.kind or "",
        num_words=len(example.expression.split()),
        num_targets=len(example.regions),
        box_share=_box_share(example, example.width, example.height),
        box_side=_box_side(example),
        expression=expression_number(example.expression),
        error=error,
        counts=counts or is_parse_failure,
        is_parse_failure=is_parse_failure,
        says_none=bool(example.regions),
        knows_existence=True,
        box_iou=missed,
        box_iou_oneref384=missed,
        box_iou_first=missed,
        kept=int(not example.regions),
        best_score=float(not example.regions),
        box_scores=() if example.regions else (1.0,),
        box_hits=() if example.regions else (0,),
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
    for mask in (answer.mask, *(target.mask for target in answer.proposals)):
        if width and height and mask is not None and tuple(mask.size) != (height, width):
            raise DataError(
                f"a mask is {mask.size[1]} x {mask.size[0]}, but the image {width} x {height}",
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


def _box_side(example: Example) -> float:
    box = _truth_box(example)
    return float("nan") if box is None else math.sqrt(box_area(box))


def expression_number(expression: str) -> int:
    """A number of 63 bits for a text, the same in every process."""
    digest = hashlib.blake2b(expression.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _holds_centre(truth: BoxXYXY, found: BoxXYXY) -> bool:
    x, y = (found[0] + found[2]) / 2, (found[1] + found[3]) / 2
    return truth[0] <= x <= truth[2] and truth[1] <= y <= truth[3]


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


class _BoxOverlaps(NamedTuple):
    """The overlaps of some boxes with the true ones, and (last column) with the box around all true ones."""

    iou: np.ndarray
    giou: np.ndarray

    @classmethod
    def of(cls, targets: Sequence[Target], example: Example) -> _BoxOverlaps:
        together = _truth_box(example)
        if together is None or not targets:
            nothing = np.zeros((len(targets), 1 if together is None else len(example.regions) + 1))
            return cls(nothing, nothing)
        truth = [*(region.box_xyxy for region in example.regions), together]
        return cls(*overlap_matrices([target.box_xyxy for target in targets], truth))

    @property
    def first_iou(self) -> float:
        """With the box around all, of the first box; 0 without a box."""
        return float(self.iou[0, -1]) if len(self.iou) else 0.0

    def matches(self, kept: Sequence[int]) -> dict[str, Any]:
        """The matches of some of the boxes, as fields of `SampleScore`."""
        iou, giou = self.iou[kept, :-1], self.giou[kept, :-1]
        if not iou.size:
            return {}
        in_order, best = matches_in_order(iou), best_matches(iou)
        return {
            "matched_iou": greedy_matches(iou),
            "matched_giou": greedy_matches(giou),
            "matched_in_order50": in_order.at_half,
            "matched_in_order": in_order.at_ten,
            "matched_best50": best.at_half,
            "matched_best": best.at_ten,
        }

    def ranks(self, targets: Sequence[Target]) -> dict[str, Any]:
        """What depends on the order of the scores, as fields of `SampleScore`; equal scores keep their order."""
        if not targets:
            return {}
        scores = np.array([target.score for target in targets])
        order = np.argsort(-scores, kind="stable")  # NaN comes last
        iou, scores = self.iou[order], np.where(np.isnan(scores), -np.inf, scores)[order]
        counted = slice(MOST_DETECTIONS)
        return {
            "rank_any": first_hit(iou[:, :-1]),
            "rank_union": first_hit(iou[:, -1:]),
            "best_score": max(float(scores[0]), 0.0),
            "box_scores": tuple(scores[counted].tolist()),
            "box_hits": hits_by_rank(iou[counted, :-1]),
        }


def _mask_matches(example: Example, kept: Sequence[Target], proposed: Sequence[Target], pixels: MaskOverlap) -> Matches:
    """Matches of masks with those of the regions, without ignored pixels; a missing mask is an empty one.

    Args:
        example: the truth.
        kept: the targets to match.
        proposed: all targets, of which `pixels` are counted together.
        pixels: of the original image.
    """
    drawn = [target.mask for target in kept if target.mask is not None]
    truth = [region.mask for region in example.regions if region.mask is not None]
    if not drawn or not truth or len(truth) < len(example.regions):
        return NO_MATCHES
    if len(proposed) == len(truth) == 1:
        return best_matches(np.array([[pixels.intersection / max(pixels.union, 1)]]))
    if example.ignored is not None:
        drawn, truth = ([subtract_masks(mask, example.ignored) for mask in part] for part in (drawn, truth))
    return best_matches(mask_iou_matrix(drawn, truth))


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
        return {frame: overlap_in(frame, truth, found, model_masks, example.ignored) for frame in frames}
    except DataError as error:  # of a mask of the store: answers are checked when they are read
        error.where = error.where or f"{example.dataset}:{example.split}: {example.id}"
        raise
