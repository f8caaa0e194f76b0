"""The losses of MRefM pre-training (OneRef section 3.2): referring MIM and MLM, and the scores VTS and STS."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refcli.losses.averages import mean_over


def mim_loss(logits: Float[Tensor, "patches codes"], code_ids: Int[Tensor, " patches"]) -> Float[Tensor, ""]:
    """Referring MIM: cross-entropy of the visual codes, mean over the masked patches of the batch; 0 without any."""
    each = F.cross_entropy(logits.float(), code_ids, reduction="none")
    return mean_over(each, torch.ones_like(code_ids, dtype=torch.bool))


def vts_loss(
    predicted: Float[Tensor, "batch patches 4"],
    truth: Float[Tensor, "batch patches 4"],
    exists: Bool[Tensor, " batch"],
) -> Float[Tensor, ""]:
    """Visual target-relation score: sum of the four absolute differences, mean over the patches and over the samples
    with a referent. See `visual_target_relation` for the truth."""
    return mean_over((predicted.float() - truth).abs().sum(-1).mean(-1), exists)


def mlm_loss(
    logits: Float[Tensor, "words vocabulary"],
    token_ids: Int[Tensor, " words"],
    *,
    label_smoothing: float,
    drop_worst_ratio: float,
) -> Float[Tensor, ""]:
    """Referring MLM: KL(truth | prediction) of the masked words with label smoothing eps, mean over those that count.

    0 without masked words. The truth is 1 - eps at the word and eps / (vocabulary - 1) at all others (BEiT-3's language
    loss).

    Args:
        logits: at the masked positions of the whole batch.
        token_ids: the true words.
        label_smoothing: eps.
        drop_worst_ratio: share of the words, those with the largest loss, that does not count; at least one does. They
            are chosen within the process, so with a ratio above 0 the loss depends on how a batch is distributed
            over processes.
    """
    log_probabilities = logits.float().log_softmax(-1)
    num_others = logits.shape[-1] - 1
    rest = label_smoothing / num_others
    at_word = log_probabilities.gather(-1, token_ids[:, None]).squeeze(-1)
    cross_entropy = -(1 - label_smoothing - rest) * at_word - rest * log_probabilities.sum(-1)
    each = cross_entropy - (_information(1 - label_smoothing) + num_others * _information(rest))
    num_kept = min(max(int(len(each) * (1 - drop_worst_ratio)), 1), len(each))
    is_kept = torch.zeros_like(token_ids, dtype=torch.bool)
    is_kept[each.detach().topk(num_kept, largest=False).indices] = True
    return mean_over(each, is_kept)


def sts_loss(
    logits: Float[Tensor, "batch words"],
    truth: Float[Tensor, "batch words"],
    counts: Bool[Tensor, "batch words"],
    exists: Bool[Tensor, " batch"],
) -> Float[Tensor, ""]:
    """Semantic target-relation score: KL(truth | softmax(logits)) over the words, mean over samples with a referent.

    Args:
        logits: of all word pieces.
        truth: see `semantic_target_relation`; sums to 1 over the words that count. Its entropy is subtracted, so the
            loss of a perfect prediction is 0.
        counts: word pieces that take part.
        exists: samples with a referent.
    """
    log_probabilities = logits.float().masked_fill(~counts, -torch.inf).log_softmax(-1).masked_fill(~counts, 0.0)
    divergence = (torch.special.xlogy(truth, truth) - truth * log_probabilities).sum(-1)
    return mean_over(divergence, exists & counts.any(-1))


def _information(probability: float) -> float:
    """-p log p, and 0 at 0."""
    return -probability * math.log(probability) if probability > 0 else 0.0
