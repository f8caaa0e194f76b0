"""Referring-aware text masking: choose the words to hide, subject and object first (OneRef section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from refcli.config.pretraining import TextMaskingSettings
from refcli.pretraining.draws import SampleDraws

ORDER_STREAM, FATE_STREAM, REPLACEMENT_STREAM = 3, 4, 5
"""Streams of random numbers; image_masking has the first ones."""
_OTHER_WORD, _NEVER = 3, 9
"""Ranks after the subject's 1 and the object's 2."""


@dataclass(frozen=True)
class MaskedWords:
    """An expression with some of its words hidden."""

    token_ids: Int[Tensor, "batch words"]
    """The ids that the tower reads."""
    is_masked: Bool[Tensor, "batch words"]
    """The words to predict, including those left visible or replaced by another word."""


def mask_words(
    token_ids: Int[Tensor, "batch words"],
    token_is_pad: Bool[Tensor, "batch words"],
    word_roles: Int[Tensor, "batch words"] | None,
    settings: TextMaskingSettings,
    *,
    mask_id: int,
    vocabulary: tuple[int, int],
    draws: SampleDraws,
) -> MaskedWords:
    """Hide max(1, int((n - 1) ratio + 0.5)) of an expression's n pieces, <s> and </s> counted.

    The subject's pieces are chosen first, then the object's, then others at random. </s> may be chosen, <s> and padding
    never. A chosen piece becomes <mask>, a random piece, or stays as it is (BERT's rule).

    Args:
        token_ids: <s>, pieces, </s>, padding.
        word_roles: 1 at the subject's pieces, 2 at the object's, else 0; None, like `prefer: none`, is all 0.
        settings: ratio, preference and shares.
        mask_id: id of <mask>.
        vocabulary: random pieces are drawn from low <= id < high.
        draws: the random numbers, on the device of the tokens; equal draws give equal masks.
    """
    num_words = token_ids.shape[1]
    may_be_masked = ~token_is_pad
    may_be_masked[:, 0] = False
    num_maskable = may_be_masked.sum(1)
    num_wanted = (num_maskable.double() * settings.ratio + 0.5).long().clamp(min=1).minimum(num_maskable)
    rank = torch.full_like(token_ids, _OTHER_WORD)
    if word_roles is not None and settings.prefer == "referents":
        rank = torch.where(word_roles > 0, word_roles, rank)
    rank = rank.masked_fill(~may_be_masked, _NEVER)
    order = (rank + draws.uniforms(num_words, stream=ORDER_STREAM)).argsort(dim=1, stable=True)
    first = torch.arange(num_words, device=order.device) < num_wanted.unsqueeze(1)
    is_masked = torch.zeros_like(token_is_pad).scatter_(1, order, first)

    low, high = vocabulary
    fate = draws.uniforms(num_words, stream=FATE_STREAM)
    replacement = draws.uniforms(num_words, stream=REPLACEMENT_STREAM)
    random_ids = low + (replacement * (high - low)).long()
    shown = torch.where(fate < settings.mask_share + settings.random_share, random_ids, token_ids)
    shown = shown.masked_fill(fate < settings.mask_share, mask_id)
    return MaskedWords(token_ids=torch.where(is_masked, shown, token_ids), is_masked=is_masked)
