"""CGFormer's own losses: dice of each level's grouping, and contrast of tokens and sentences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from refcli.contracts.batch import Targets
from refcli.losses.averages import mean_over
from refcli.losses.masks import dice

CONTRAST_TEMPERATURE = 0.07
"""The usual one of InfoNCE (He et al. 2020); the paper does not state it."""


def grouping_dice(
    level_logits: Sequence[Float[Tensor, "batch _"]],
    grids: Sequence[tuple[int, int]],
    targets: Targets,
    *,
    weights: Sequence[float],
) -> Float[Tensor, ""]:
    """Weighted sum over the levels of dice between the referent's places and the nearest-neighbour downsampled mask.

    Args:
        level_logits: that a place belongs to the referent, coarsest level first.
        grids: (rows, columns) of each level's places, row-major.
        targets: the truth; only samples with a referent and a known mask count.
        weights: of each level.
    """
    truth, counts = targets.masks[:, None].float(), targets.mask_is_known & targets.exists
    terms = [
        weight * mean_over(dice(logits.float(), F.interpolate(truth, size=grid, mode="nearest").flatten(1)), counts)
        for logits, grid, weight in zip(level_logits, grids, weights, strict=True)
    ]
    return torch.stack(terms).sum()


def token_contrast(
    tokens: Float[Tensor, "batch tokens dim"], sentences: Float[Tensor, "batch dim"], exists: Bool[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """InfoNCE of the referent token: its own sentence against the batch's other sentences and its own other tokens.

    The paper describes such a loss, but the published code has none; this form is ours. Samples without a referent do
    not count.
    """
    tokens, sentences = F.normalize(tokens.float(), dim=-1), F.normalize(sentences.float(), dim=-1)
    referents, others = tokens[:, -1], tokens[:, :-1]
    to_sentences = referents @ sentences.T
    to_others = (others @ referents[:, :, None]).squeeze(-1)
    logits = torch.cat([to_sentences, to_others], 1) / CONTRAST_TEMPERATURE
    own = torch.arange(tokens.shape[0], device=tokens.device)
    return mean_over(F.cross_entropy(logits, own, reduction="none"), exists)
