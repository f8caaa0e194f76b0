"""VQ-KD (BEiT v2), the visual tokenizer: the official names and ours, in both directions."""

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
from refcli.weights.official.conversions import renaming
from refcli.weights.official.conversions.plan import (
    ConversionPlan,
    KeyTableError,
    check_keys,
    count_heads,
    heads_note,
    size_of,
)
from refcli.weights.official.conversions.renaming import Names, our_names
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
"""Every tensor keeps its shape."""
FIRST_FFN = THEIR_BLOCK.format(layer=0) + "mlp.fc1.weight"
LEFT_OUT: renaming.LeftOut = (
    (
        re.compile(
            r"(decoder|decode_task_layer)\."
            r"|quantize\.(embedding\.)?cluster_size$|quantize\.embedding\.(embed_avg|initted)$"
            r"|loss|teacher|scaling"
        ),
        "only the training of the tokenizer needs it",
    ),
)
"""Decoder, moving averages of the codebook, losses, teacher and its input: no code id depends on them."""


def settings_of(official: Mapping[str, Tensor], *, heads: int | None = None) -> VisualTokenizerSettings:
    """Read a tokenizer's sizes off the shapes of its official state dict, and check every tensor against them.

    Args:
        official: the state dict without its container; tensors on `meta` will do.
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
        expected = to_official(VisualTokenizer(settings).state_dict())
    check_keys(KIND, official, expected, also_known=lambda name: why_left_out(name) is not None)
    return settings


def from_official(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's and the codebook's tensors under our names; what no code id depends on is left out.

    Raises:
        WeightsError: a tensor that is not part of the published model.
    """
    return renaming.from_official(official, NAMES, LEFT_OUT, kind=KIND, hint="is this the right kind of checkpoint?")


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the official names: the inverse of `from_official`, without what that left out.

    Raises:
        WeightsError: a tensor that the official model does not have.
    """
    return renaming.to_official(state, NAMES, hint="only a visual tokenizer can be written in the official layout")


def why_left_out(name: str) -> str | None:
    """Why our model has no place for an official tensor; None for one that it has a place for, or an unknown one."""
    return renaming.why_left_out(name, LEFT_OUT)


def plan(
    official: Mapping[str, Tensor], *, args: Mapping[str, Any], heads: int | None, image_size: tuple[int, int] | None
) -> ConversionPlan:
    """The encoder and its codebook; nothing is read off `args`.

    Raises:
        KeyTableError: missing, misshapen or unknown tensors.
        UsageError: an image size (this model resamples its positions for every picture itself), or a width that does
            not divide into the heads.
    """
    if image_size is not None:
        raise UsageError(
            "a visual tokenizer has no image size to change", where="--image-size", hint="it takes images of any size"
        )
    settings = settings_of(official, heads=heads)
    state = from_official(official)
    return ConversionPlan(
        settings=settings,
        state=state,
        names=our_names(to_official(state), NAMES),
        dropped={name: why for name in official if (why := why_left_out(name))},
        notes=("a visual tokenizer, for `refcli pretrain`", *heads_note(settings.dim, heads)),
    )
