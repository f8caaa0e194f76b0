"""Which query answers which region: the assignment of least cost (DETR), without gradient and in fp32."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from refcli.contracts.batch import Regions
from refcli.geometry.box_tensors import cxcywh_to_xyxy, giou_pairs
from refcli.heads.instances.decoder import QueryStage
from refcli.heads.instances.seeds import Seeds

SCORE_COST, L1_COST, GIOU_COST, CENTRE_COST = 2.0, 5.0, 2.0, 2.0
"""Weights of the costs (Mask2Former, DETR; the distance of the seed: InstanceVG)."""
DEAD_COST = 1e3
"""Added for queries without a seed: they are matched only where no other query is left."""
LARGEST_COST = 1e6
"""In the place of costs that are not finite, which the assignment refuses."""


class Assignment(NamedTuple):
    """Pairs of a query and a region of the same sample; one row per pair."""

    samples: Int[Tensor, " pairs"]
    queries: Int[Tensor, " pairs"]
    regions: Int[Tensor, " pairs"]

    def flags(self, num_samples: int, num_queries: int) -> Bool[Tensor, "samples queries"]:
        """Whether each query is matched."""
        is_matched = torch.zeros(num_samples, num_queries, dtype=torch.bool, device=self.samples.device)
        is_matched[self.samples, self.queries] = True
        return is_matched


@torch.no_grad()
def match(stage: QueryStage, seeds: Seeds, regions: Regions) -> Assignment:
    """Assign each region of a sample to one query, as far as there are queries.

    cost = -2 score + 5 L1(boxes) - 2 GIoU + 2 L1(seed, true centre). Samples whose regions are not separate are not
    matched.
    """
    is_matched = regions.is_real & regions.are_separate[:, None]
    costs = _costs(stage, seeds, regions).cpu().numpy()
    real = is_matched.cpu().numpy()
    pairs = [np.empty((0, 3), dtype=np.int64)]
    for sample in np.flatnonzero(real.any(axis=1)):
        columns = np.flatnonzero(real[sample])
        queries, found = linear_sum_assignment(costs[sample][:, columns])
        pairs.append(np.stack([np.full_like(queries, sample), queries, columns[found]], axis=1))
    samples, queries, targets = torch.from_numpy(np.concatenate(pairs)).to(stage.score_logits.device).unbind(1)
    return Assignment(samples, queries, targets)


def _costs(stage: QueryStage, seeds: Seeds, regions: Regions) -> Float[Tensor, "batch queries regions"]:
    """Finite costs of every pair."""
    boxes, true = stage.boxes_cxcywh.float()[:, :, None], regions.boxes_cxcywh.float()[:, None]
    boxes, true = boxes + torch.zeros_like(true), true + torch.zeros_like(boxes)
    cost = (
        L1_COST * (boxes - true).abs().sum(-1)
        - GIOU_COST * giou_pairs(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(true))
        + CENTRE_COST * (seeds.points.float()[:, :, None] - true[..., :2]).abs().sum(-1)
        - SCORE_COST * stage.score_logits.float().sigmoid()[:, :, None]
        + torch.where(seeds.are_alive, 0.0, DEAD_COST)[:, :, None]
    )
    finite: Tensor = cost.nan_to_num(nan=LARGEST_COST, posinf=LARGEST_COST, neginf=LARGEST_COST)
    return finite
