"""Conversion of VQ-KD (BEiT v2), the visual tokenizer: the official names and ours, in both directions."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from refcli.config.pretraining import VisualTokenizerSettings
from refcli.errors import UsageError
from refcli.model.visual_tokenizer import VisualTokenizer
from refcli.weights.official.conversions.plan import ConversionPlan, KeyTableError, count_heads, heads_note, size_of
from refcli.weights.official.conversions.renaming import Names, Renaming
from refcli.weights.tensors import Mismatch

KIND = "VQ-KD"
POSITIONS, PATCHES, CODEBOOK = "encoder.pos_embed", "encoder.patch_embed.proj.weight", "quantize.embedding.weight"
THEIR_BLOCK, OUR_BLOCK = "encoder.blocks.{layer}.", "blocks.{layer}."
NAMES: Names = (
    ("encoder.cls_token", "embedding.cls_token"),
    (POSITIONS, "embedding.positions"),
    ("encoder.patch_embed.proj.{kind}", "embedding.projection.{kind}"),
    ("encoder.fc_norm.{kind}", "norm.{kind}"),
    ("encode_task_layer.0.{kind}", "code_projection.0.{kind}"),
    ("encode_task_layer.2.{kind}", "code_projection.2.{kind}"),
    (CODEBOOK, "codebook"),
    (THEIR_BLOCK + "norm1.{kind}", OUR_BLOCK + "attention_norm.{kind}"),
    (THEIR_BLOCK + "attn.qkv.weight", OUR_BLOCK + "attention.qkv.weight"),
    (THEIR_BLOCK + "attn.q_bias", OUR_BLOCK + "attention.query_bias"),
    (THEIR_BLOCK + "attn.v_bias", OUR_BLOCK + "attention.value_bias"),
    (THEIR_BLOCK + "attn.proj.{kind}", OUR_BLOCK + "attention.out.{kind}"),
    (THEIR_BLOCK + "norm2.{kind}", OUR_BLOCK + "ffn_norm.{kind}"),
    (THEIR_BLOCK + "mlp.fc1.{kind}", OUR_BLOCK + "ffn.0.{kind}"),
    (THEIR_BLOCK + "mlp.fc2.{kind}", OUR_BLOCK + "ffn.2.{kind}"),
)
FIRST_FFN = THEIR_BLOCK.format(layer=0) + "mlp.fc1.weight"
RENAMING = Renaming(
    KIND,
    NAMES,
    left_out=(
        (
            re.compile(
                r"(decoder|decode_task_layer)\."
                r"|quantize\.(embedding\.)?cluster_size$|quantize\.embedding\.(embed_avg|initted)$"
                r"|loss|teacher|scaling"
            ),
            "only the training of the tokenizer needs it",
        ),
    ),
    hint_for_unknown="is this the right kind of checkpoint?",
    hint_for_ours="only a visual tokenizer can be written in the official layout",
)


def settings_of(official: Mapping[str, Tensor], *, heads: int | None = None) -> VisualTokenizerSettings:
    """Read a tokenizer's sizes from the shapes of its official state dict, and check every tensor against them.

    Args:
        official: the state dict without its container; tensors on `meta` are enough.
        heads: number of attention heads; None means heads of 64 channels, as published.

    Raises:
        KeyTableError: missing, misshapen or unknown tensors.
        UsageError: a width that does not divide into such heads.
    """
    _, rows, _ = size_of(official, POSITIONS, rank=3, kind=KIND)
    dim, _, _, patch_size = size_of(official, PATCHES, rank=4, kind=KIND)
    ffn_dim, _ = size_of(official, FIRST_FFN, rank=2, kind=KIND)
    num_codes, code_dim = size_of(official, CODEBOOK, rank=2, kind=KIND)
    side = math.isqrt(rows - 1)
    if side < 1 or side * side != rows - 1:
        raise KeyTableError(KIND, [Mismatch(POSITIONS, "wrong shape", tuple(official[POSITIONS].shape))])
    settings = VisualTokenizerSettings(
        image_size=side * patch_size,
        patch_size=patch_size,
        dim=dim,
        layers=len({name.split(".")[2] for name in official if name.startswith("encoder.blocks.")}),
        heads=count_heads(dim, heads),
        ffn_dim=ffn_dim,
        num_codes=num_codes,
        code_dim=code_dim,
    )
    with torch.device("meta"):
        RENAMING.check(official, model=VisualTokenizer(settings).state_dict())
    return settings


def plan(
    official: Mapping[str, Tensor], *, args: Mapping[str, Any], heads: int | None, image_size: tuple[int, int] | None
) -> ConversionPlan:
    """The encoder and its codebook; `args` are not used.

    Raises:
        KeyTableError: missing, misshapen or unknown tensors.
        UsageError: an image size (this model resamples its positions for every image), or a width that does
            not divide into the heads.
    """
    if image_size is not None:
        raise UsageError(
            "a visual tokenizer has no image size to change", where="--image-size", hint="it accepts any image size"
        )
    settings = settings_of(official, heads=heads)
    state = RENAMING.from_official(official)
    return ConversionPlan(
        settings=settings,
        state=state,
        names=RENAMING.our_names(RENAMING.to_official(state)),
        dropped=RENAMING.dropped(official),
        notes=("a visual tokenizer, for `refcli pretrain`", *heads_note(settings.dim, heads)),
    )
