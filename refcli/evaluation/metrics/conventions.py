"""Scoring conventions: how published evaluations differ from the default, one row each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from refcli.errors import UsageError
from refcli.evaluation.mask_frames import IMAGE
from refcli.tables import did_you_mean

BOXES = ("acc50", "acc60", "acc70", "acc80", "acc90", "box_miou")
BENCHMARK_BOXES = ("acc50", "acc75", "acc90", "macc", "box_miou")
MASKS = ("mask_miou", "mask_oiou", "pr50", "pr60", "pr70", "pr80", "pr90")
GENERALISED = ("giou", "ciou", "n_acc", "t_acc")


@dataclass(frozen=True)
class Convention:
    """How metrics are computed from masks and boxes.

    Masks of answers are binary, in pixels of the image. The earlier steps of a system's own evaluation (the order of
    resizing and thresholding, the threshold) are not undone; only `frame` resizes the masks again.
    """

    source: str
    """The evaluation that counts this way."""
    differs: str
    """How it differs from `original`, in words."""
    metrics: tuple[str, ...]
    """The metrics that it reports."""
    frame: str = IMAGE
    """Row of `refcli.evaluation.mask_frames.FRAMES`."""
    box_column: Literal["box_iou", "box_iou_oneref384", "box_iou_first"] = "box_iou"
    box_is_strict: bool = False
    """Acc@X counts IoU > X, else IoU >= X."""
    box_counts_none: bool = False
    """Box metrics are over all samples: "no target" has IoU 1 if there is none and 0 if there is one, and any other
    answer about no target has IoU 0. Else they are over samples with a target, before the gate."""
    pr_is_strict: bool = False
    """Pr@X counts IoU > X, else IoU >= X."""
    pr_is_gated: bool = False
    """In Pr@X a wrong "no target" has IoU 0, else the mask before the gate counts."""
    added_to_union: float = 0.0
    """A small number in the denominator of the IoU per sample, in pixels."""
    empty_iou: float = 0.0
    """IoU of a sample with a target if both masks are empty."""
    wrong_none: Literal["union", "truth", "kept"] = "union"
    """How gIoU and cIoU count a wrong "no target": IoU 0 and a union of truth and discarded mask, or of the truth
    alone, or no error (the discarded mask counts)."""
    none_below_pixels: int = 0
    """A mask of fewer pixels than this is "no target", for a system that states nothing about existence."""

    def mask_iou(self, intersection: np.ndarray, union: np.ndarray) -> np.ndarray:
        """IoU per sample from pixel counts."""
        iou = intersection / (np.maximum(union, 1) + self.added_to_union)
        return np.where(union > 0, iou, self.empty_iou)


ORIGINAL = "original"
ONEREF384 = "oneref384"
CONVENTIONS: Mapping[str, Convention] = {
    ORIGINAL: Convention(
        source="the default: pixels of the original image, every expression",
        differs="nothing",
        metrics=(*BOXES, "acc50_gated", *MASKS, *GENERALISED),
        empty_iou=1.0,
    ),
    ONEREF384: Convention(
        source="OneRef (NeurIPS 2024), published evaluation code",
        differs="Image letterboxed to 384 x 384: true masks by the nearest pixel; answered masks pass a grid of "
        "192 x 192 cells, whose bilinear enlargement is on wherever it is not zero, so they grow by about a pixel on "
        "every side and a perfect mask scores below 100. True boxes are cut to whole pixels (x, y, width, height), "
        "answered boxes to the letterbox. Answers of refcli are scored in the letterbox of their model, the padding "
        "included; what other answers cover of a padding cannot be known and costs nothing. Two empty masks are 0 / 0 "
        "there (NaN for the split); here IoU 0. oIoU is over all samples (the published one is over the first "
        "process's).",
        metrics=(*BOXES, *MASKS),
        frame="letterbox384",
        box_column="box_iou_oneref384",
    ),
    "lavt480": Convention(
        source="LAVT (CVPR 2022), published test code",
        differs="Masks stretched to 480 x 480 by the nearest pixel; two empty masks have IoU 0.",
        metrics=MASKS,
        frame="stretched480",
    ),
    "cgformer": Convention(
        source="CGFormer (CVPR 2023), published test code",
        differs="Pr@X counts IoU > X; the union has 1e-6 added, so two empty masks have IoU 0. Its mask is the "
        "probability, resized bicubically, above 0.5.",
        metrics=MASKS,
        pr_is_strict=True,
        added_to_union=1e-6,
    ),
    "cris": Convention(
        source="CRIS (CVPR 2022), published test code",
        differs="As cgformer, but its mask is the probability above 0.35; what its paper calls IoU is mask_miou.",
        metrics=MASKS,
        pr_is_strict=True,
        added_to_union=1e-6,
    ),
    "rela480": Convention(
        source="ReLA (GRES, CVPR 2023), published evaluator; the 50-pixel rule is its paper's",
        differs="Masks stretched to 480 x 480 by the nearest pixel (there: polygons scaled, then filled). Two empty "
        "masks of a sample with a target have IoU 0. Pr@X is over gated masks. A system without an existence score "
        'says "no target" with fewer than 50 pixels.',
        metrics=("mask_miou", "mask_oiou", "pr70", "pr80", "pr90", *GENERALISED),
        frame="stretched480",
        pr_is_gated=True,
        none_below_pixels=50,
    ),
    "rela480-text": Convention(
        source="ReLA (GRES, CVPR 2023), the wording of the paper",
        differs='As rela480, but a wrong "no target" empties the mask: its union in cIoU is the true mask alone.',
        metrics=("pr70", "pr80", "pr90", *GENERALISED),
        frame="stretched480",
        pr_is_gated=True,
        wrong_none="truth",
        none_below_pixels=50,
    ),
    "gsva": Convention(
        source="GSVA (CVPR 2024), published evaluator",
        differs='A wrong "no target" costs T-acc only: the mask counts as drawn in gIoU and cIoU. The union has 1e-8 '
        "added.",
        metrics=GENERALISED,
        added_to_union=1e-8,
        wrong_none="kept",
    ),
    "ref-l4": Convention(
        source="Ref-L4 (2024), published evaluator; GSEval's counts in the same way",
        differs="Acc@X counts IoU > X.",
        metrics=BENCHMARK_BOXES,
        box_is_strict=True,
    ),
    "first-box": Convention(
        source="Ref-Adv-s (ICLR 2026), published protocol",
        differs="Only the first box of an answer counts, whatever its score; else the box around all of them.",
        metrics=BENCHMARK_BOXES,
        box_column="box_iou_first",
    ),
    "groundingme": Convention(
        source="GroundingME (CVPR 2026), published evaluator, with one declared reading of the coordinates",
        differs='Box metrics are over all samples: "no target" has IoU 1 if there is none, else 0. Only the first box '
        "counts. The evaluator itself takes the better of two readings and counts unparsable text as a rejection.",
        metrics=BENCHMARK_BOXES,
        box_column="box_iou_first",
        box_counts_none=True,
    ),
}
ALL = "all"


def choose_conventions(names: Sequence[str]) -> tuple[str, ...]:
    """The conventions of some names, `original` first, each once; `all` is every row.

    Raises:
        UsageError: no such convention.
    """
    for name in names:
        if name not in CONVENTIONS and name != ALL:
            raise UsageError(
                f"there is no convention called {name!r}",
                where="--convention",
                hint=did_you_mean(name, [*CONVENTIONS, ALL]),
            )
    chosen = CONVENTIONS if ALL in names else (ORIGINAL, *names)
    return tuple(dict.fromkeys(chosen))


def frames_of(conventions: Sequence[str]) -> tuple[str, ...]:
    """The frames in which these conventions compare masks, the image first."""
    return tuple(dict.fromkeys((IMAGE, *(CONVENTIONS[name].frame for name in conventions))))
