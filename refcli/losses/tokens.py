"""Losses over vocabularies: visual codes and masked words."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refcli.losses.averages import mean_over


def code_cross_entropy(logits: Float[Tensor, "patches codes"], code_ids: Int[Tensor, " patches"]) -> Float[Tensor, ""]:
    """Cross-entropy of the visual codes, mean over the masked patches of the batch; 0 when none is masked."""
    each = F.cross_entropy(logits.float(), code_ids, reduction="none")
    return mean_over(each, torch.ones_like(code_ids, dtype=torch.bool))


def word_divergence(
    logits: Float[Tensor, "words vocabulary"],
    token_ids: Int[Tensor, " words"],
    *,
    label_smoothing: float,
    drop_worst_ratio: float,
) -> Float[Tensor, ""]:
    """KL(truth | prediction) of the masked words with label smoothing eps, mean over those that are kept.

    0 when no word is masked. The truth is 1 - eps at the word and eps / (vocabulary - 1) at every other (BEiT-3's
    language loss).

    Args:
        logits: at the masked positions of the whole batch.
        token_ids: what stood there.
        label_smoothing: eps.
        drop_worst_ratio: this part of the words, those with the largest loss, counts for nothing; one is always kept.
            They are chosen within the process, so with a ratio above 0 the loss depends on how a batch is spread over
            processes.
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


def distribution_divergence(
    logits: Float[Tensor, "batch words"],
    truth: Float[Tensor, "batch words"],
    counts: Bool[Tensor, "batch words"],
    exists: Bool[Tensor, " batch"],
) -> Float[Tensor, ""]:
    """KL(truth | softmax(logits)) over the words that count, mean over the samples that exist.

    Args:
        truth: sums to 1 over the words that count; its entropy is subtracted, so that 0 is a perfect prediction.
    """
    log_probabilities = logits.float().masked_fill(~counts, -torch.inf).log_softmax(-1).masked_fill(~counts, 0.0)
    divergence = (torch.special.xlogy(truth, truth) - truth * log_probabilities).sum(-1)
    return mean_over(divergence, exists & counts.any(-1))


def _information(probability: float) -> float:
    """-p log p, and 0 at 0."""
    return -probability * math.log(probability) if probability > 0 else 0.0
