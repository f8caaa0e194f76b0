"""Conversion of ReLA's pixel decoder and region decoder: the official names and ours, in both directions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from refcli.config.schema import HeadChoice, TowerSettings
from refcli.errors import UsageError
from refcli.heads.rela.head import RelaHead, RelaSettings
from refcli.heads.rela.pixel_decoder import CHANNELS_PER_GROUP, NUM_LEVELS
from refcli.weights.official.conversions.plan import ConversionPlan, KeyTableError, size_of
from refcli.weights.official.conversions.renaming import ENCODERS_LEFT_OUT, Names, Renaming
from refcli.weights.tensors import Mismatch

KIND = "ReLA"
PUBLISHED_HEADS = 8
THEIR_PIXELS, OUR_PIXELS = "sem_seg_head.pixel_decoder.", "head.pixel_decoder."
THEIR_LAYER, OUR_LAYER = THEIR_PIXELS + "transformer.encoder.layers.{layer}.", OUR_PIXELS + "layers.{layer}."
THEIR_REGIONS, OUR_REGIONS = "sem_seg_head.predictor.", "head.decoder."
ATTENTIONS = (
    ("RIA_layers.{layer}.", "multihead_attn.", "image_attentions.{layer}."),
    ("RLA_vision.{layer}.", "self_attn.", "region_attentions.{layer}."),
    ("RLA_lang_att.", "multihead_attn.", "language_attention."),
)
IN_THE_PIXEL_DECODER: Names = (
    ("transformer.level_embed", "level_embedding"),
    *(
        (f"input_proj.{level}.{part}.{{kind}}", f"projections.{level}.{part}.{{kind}}")
        for level in range(NUM_LEVELS)
        for part in (0, 1)
    ),
    ("adapter_1.weight", "lateral.0.weight"),
    ("adapter_1.norm.{kind}", "lateral.1.{kind}"),
    ("layer_1.weight", "smooth.0.weight"),
    ("layer_1.norm.{kind}", "smooth.1.{kind}"),
    ("mask_features.{kind}", "mask_features.{kind}"),
)
IN_A_DEFORMABLE_LAYER: Names = (
    ("self_attn.sampling_offsets.{kind}", "attention.offsets.{kind}"),
    ("self_attn.attention_weights.{kind}", "attention.weights.{kind}"),
    ("self_attn.value_proj.{kind}", "attention.value.{kind}"),
    ("self_attn.output_proj.{kind}", "attention.out.{kind}"),
    ("norm1.{kind}", "attention_norm.{kind}"),
    ("linear1.{kind}", "ffn.0.{kind}"),
    ("linear2.{kind}", "ffn.2.{kind}"),
    ("norm2.{kind}", "ffn_norm.{kind}"),
)
IN_THE_REGION_DECODER: Names = (
    ("query_feat.weight", "region_queries"),
    ("query_embed.weight", "region_positions"),
    ("level_embed.weight", "level_embedding"),
    *((layer + attention + "in_proj_{kind}", ours + "qkv.{kind}") for layer, attention, ours in ATTENTIONS),
    *((layer + attention + "out_proj.{kind}", ours + "out.{kind}") for layer, attention, ours in ATTENTIONS),
    *((layer + "norm.{kind}", ours + "norm.{kind}") for layer, _, ours in ATTENTIONS),
    ("transformer_ffn_layers.{layer}.linear1.{kind}", "mlps.{layer}.mlp.0.{kind}"),
    ("transformer_ffn_layers.{layer}.linear2.{kind}", "mlps.{layer}.mlp.2.{kind}"),
    ("transformer_ffn_layers.{layer}.norm.{kind}", "mlps.{layer}.norm.{kind}"),
    ("lang_proj.weight", "language_projection.weight"),
    ("lang_weight", "language_gate"),
    ("decoder_norm.{kind}", "norm.{kind}"),
    ("minimap_embed.{kind}", "minimap.{kind}"),
    ("nt_embed.layers.0.{kind}", "no_target.0.{kind}"),
    ("nt_embed.layers.1.{kind}", "no_target.2.{kind}"),
    ("mask_embed.layers.0.{kind}", "mask_filter.0.{kind}"),
    ("mask_embed.layers.1.{kind}", "mask_filter.2.{kind}"),
    ("mask_embed.layers.2.{kind}", "mask_filter.4.{kind}"),
)
NAMES: Names = (
    *((THEIR_PIXELS + theirs, OUR_PIXELS + ours) for theirs, ours in IN_THE_PIXEL_DECODER),
    *((THEIR_LAYER + theirs, OUR_LAYER + ours) for theirs, ours in IN_A_DEFORMABLE_LAYER),
    *((THEIR_REGIONS + theirs, OUR_REGIONS + ours) for theirs, ours in IN_THE_REGION_DECODER),
)
RENAMING = Renaming(
    KIND,
    NAMES,
    left_out=ENCODERS_LEFT_OUT,
    hint_for_unknown="is this the right kind of checkpoint, of the published code's main branch?",
    hint_for_ours="only the pixel decoder and the region decoder can be written in the official layout",
)
REGIONS, OLD_REGIONS = THEIR_REGIONS + "query_feat.weight", THEIR_REGIONS + "static_query.weight"
"""The second is the name of the first in checkpoints from before version 2 of the published code."""
WORDS = THEIR_REGIONS + "lang_proj.weight"
FFN = THEIR_REGIONS + "transformer_ffn_layers.0.linear1.weight"
PIXEL_FFN = THEIR_LAYER.format(layer=0) + "linear1.weight"
POINTS = THEIR_LAYER.format(layer=0) + "self_attn.attention_weights.bias"
FINE_TO_COARSE = ("adapter_1.weight", "input_proj.2.0.weight", "input_proj.1.0.weight", "input_proj.0.0.weight")


def plan(
    official: Mapping[str, Tensor], *, args: Mapping[str, Any], heads: int | None, image_size: tuple[int, int] | None
) -> ConversionPlan:
    """The pixel decoder and the region decoder of a head; `args` are not used.

    Args:
        official: the state dict of the published code's main branch, or of its first version.
        args: not used.
        heads: attention heads of both decoders; None means 8, as published.
        image_size: must be None.

    Raises:
        KeyTableError: missing, misshapen or unknown tensors.
        UsageError: heads that do not fit, or an image size: this is not a tower.
    """
    if image_size is not None:
        raise UsageError("ReLA is converted without a tower, so there is nothing to resize", where="--image-size")
    called = {REGIONS if name == OLD_REGIONS else name: name for name in official}
    official = {name: official[old_name] for name, old_name in called.items()}
    settings, tower_dim = _sizes(official, PUBLISHED_HEADS if heads is None else heads)
    head = HeadChoice(name="rela", settings=settings.model_dump(mode="json", exclude_defaults=True))
    model = _decoders_of(settings, tower_dim)
    note = "decoders without pyramid and tower; their tensors have the names of a complete model"
    found = RENAMING.plan_head(official, model=model, head=head, tower_dim=tower_dim, note=note)
    return replace(found, names={called[name]: ours for name, ours in found.names.items()})


def _sizes(official: Mapping[str, Tensor], heads: int) -> tuple[RelaSettings, int]:
    """The head's settings as the shapes give them, and the width of the token features it reads."""
    num_regions, dim = size_of(official, REGIONS, rank=2, kind=KIND)
    _, text_dim = size_of(official, WORDS, rank=2, kind=KIND)
    (num_points,) = size_of(official, POINTS, rank=1, kind=KIND)
    c4, c8, c16, c32 = (size_of(official, THEIR_PIXELS + name, rank=4, kind=KIND)[1] for name in FINE_TO_COARSE)
    if math.isqrt(num_regions) ** 2 != num_regions or dim % CHANNELS_PER_GROUP:
        raise KeyTableError(KIND, [Mismatch(REGIONS, "wrong shape", (num_regions, dim))])
    if heads < 1 or dim % heads or num_points % (heads * NUM_LEVELS):
        raise UsageError(
            f"{dim} channels and {num_points} sampling points on {NUM_LEVELS} levels do not divide into {heads} heads",
            where="--heads",
            hint="no tensor shows the number of attention heads: give it to `refcli weights convert`",
        )
    settings = RelaSettings(
        dim=dim,
        heads=heads,
        regions=math.isqrt(num_regions),
        decoder_layers=_count(official, THEIR_REGIONS + "RIA_layers."),
        decoder_ffn_dim=size_of(official, FFN, rank=2, kind=KIND)[0],
        pixel_layers=_count(official, THEIR_PIXELS + "transformer.encoder.layers."),
        pixel_ffn_dim=size_of(official, PIXEL_FFN, rank=2, kind=KIND)[0],
        points=num_points // (heads * NUM_LEVELS),
        pyramid_channels=(c4, c8, c16, c32),
        legacy=True,
    )
    return settings, text_dim


def _count(official: Mapping[str, Tensor], prefix: str) -> int:
    """Number of layers, at least 1; a gap in their numbers shows later as a missing tensor."""
    return max(1, len({name.removeprefix(prefix).split(".")[0] for name in official if name.startswith(prefix)}))


def _decoders_of(settings: RelaSettings, tower_dim: int) -> dict[str, Tensor]:
    """Our tensors for the published ones, on `meta`."""
    with torch.device("meta"):
        head = RelaHead(settings, TowerSettings(dim=tower_dim, heads=1))
    parts = {OUR_PIXELS: head.pixel_decoder, OUR_REGIONS: head.decoder}
    return {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.state_dict().items()}
