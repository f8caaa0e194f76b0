"""Box metrics: referring expression comprehension (REC), phrase grounding, and several boxes per expression (GREC)."""

from __future__ import annotations

import numpy as np

from refcli.evaluation.box_matches import TEN_THRESHOLDS
from refcli.evaluation.metrics.conventions import Convention
from refcli.evaluation.metrics.ratios import Ratio, share
from refcli.evaluation.sample_columns import ScoreColumns

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
BOX_THRESHOLDS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.9)
RECALL_AT = (1, 5, 10)
"""Places of phrase grounding (MDETR, Flickr30k Entities)."""


def box_ratios(scores: ScoreColumns, convention: Convention) -> dict[str, Ratio]:
    """Accuracies and mean IoU over the samples WITH a target.

    The box around all answered targets is compared with the box around all true ones.

    - `acc50` ... `acc90`: share with IoU >= 0.5 ... 0.9. The classical metric of RefCOCO: the box counts
      regardless of the model's existence gate.
    - `macc`: mean of the shares with IoU >= 0.50, 0.55, ..., 0.95 (mAcc of Ref-L4, GroundingME).
    - `acc50_gated`: as `acc50`, but a wrong "no target" is a miss, as for a user.
    - `box_miou`: mean IoU of the box before the gate.
    - `center_acc`: share whose box has its centre in the true box, edges included (`Center_ACC` of lmms-eval;
      pointing accuracy).
    - `acc50_kind_mean`, `macc_kind_mean`: mean over the kinds of expressions of `acc50` and `macc`, each kind with
      the same weight: a class average if the kinds are classes (those of Ref-L4 are not). Absent with fewer than two.

    An answer without a box, or whose boxes are not finite, has IoU 0; so do empty boxes. Samples of images of unknown
    size are left out by conventions that need the size. `Convention.box_counts_none` includes samples without a target.
    """
    column = getattr(scores, convention.box_column)
    if column is None:
        return {}
    is_measured = ~np.isnan(column)
    among = scores.has_target & is_measured
    iou = np.where(is_measured, column, 0.0)
    if convention.box_counts_none:
        among = is_measured | ~scores.has_target
        iou = np.where(scores.says_none, np.where(scores.has_target, 0.0, 1.0), iou)
    reaches = np.greater if convention.box_is_strict else np.greater_equal
    hits = {f"acc{round(threshold * 100)}": reaches(iou, threshold) for threshold in BOX_THRESHOLDS}
    num_reached = np.sum([reaches(iou, threshold) for threshold in TEN_THRESHOLDS], axis=0)
    ratios = {name: share(hit, among) for name, hit in hits.items()}
    ratios["macc"] = Ratio(np.where(among, num_reached, 0), among * len(TEN_THRESHOLDS))
    ratios["acc50_gated"] = share((iou >= THRESHOLDS[0]) & ~scores.says_none, among)
    ratios["box_miou"] = share(iou, among)
    if scores.hits_centre is not None:
        ratios["center_acc"] = share(scores.hits_centre, among)
    weight = _weight_of_kinds(scores.kind, among)
    if weight is not None:
        ratios["acc50_kind_mean"] = Ratio(hits["acc50"] * weight, weight)
        ratios["macc_kind_mean"] = Ratio(num_reached * weight, weight * len(TEN_THRESHOLDS))
    return ratios


def _weight_of_kinds(kinds: np.ndarray, among: np.ndarray) -> np.ndarray | None:
    """The weights of samples that give each kind the same weight; None with fewer than two kinds."""
    names, kind = np.unique(kinds, return_inverse=True)
    among = among & (kinds != "")
    counts = np.bincount(kind[among], minlength=len(names))
    if np.count_nonzero(counts) < 2:
        return None
    weights: np.ndarray = among / np.maximum(counts, 1)[kind]
    return weights


def recall_ratios(scores: ScoreColumns) -> dict[str, Ratio]:
    """Recall@k of phrase grounding over the samples WITH a target: box by box, best score first, before the gate.

    - `recall{1,5,10}_any`: one of the first k boxes has IoU >= 0.5 with ANY box of the phrase (MDETR, GLIP).
    - `recall{1,5,10}_union`: ... with the box around all boxes of the phrase (Plummer et al.; TransVG, OneRef).
    """
    among = scores.has_target
    return {
        f"recall{k}_{protocol}": share((rank > 0) & (rank <= k), among)
        for protocol, rank in (("any", scores.rank_any), ("union", scores.rank_union))
        for k in RECALL_AT
    }


def grec_ratios(scores: ScoreColumns) -> dict[str, Ratio]:
    """Generalised comprehension (He et al., GREC, 2023): the boxes with enough score, against all regions.

    - `grec_pr_iou`: share of ALL samples whose kept boxes are exactly the regions: F1 = 1 of a greedy matching at
      IoU >= 0.5, or nothing kept where there is no target.
    - `grec_pr_giou`: the same by GIoU >= 0.5, which is stricter and is what the published evaluator counts.
    - `grec_n_acc`, `grec_t_acc`: share of the samples without (with) a target where nothing (something) is kept.
    """
    none_kept, num_targets = scores.kept == 0, scores.num_targets

    def precision(matched: np.ndarray) -> Ratio:
        is_exact = (matched == num_targets) & (scores.kept == num_targets)
        return share(np.where(scores.has_target, is_exact, none_kept), np.ones(len(scores), dtype=np.bool_))

    return {
        "grec_pr_iou": precision(scores.matched_iou),
        "grec_pr_giou": precision(scores.matched_giou),
        "grec_n_acc": share(none_kept, ~scores.has_target),
        "grec_t_acc": share(~none_kept, scores.has_target),
    }
