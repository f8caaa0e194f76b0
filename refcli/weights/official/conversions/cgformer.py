"""Conversion of CGFormer's decoder: the official names and ours, in both directions."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from refcli.config.schema import HeadChoice, TowerSettings
from refcli.errors import UsageError
from refcli.heads.cgformer.head import CGFormerHead, CGFormerSettings
from refcli.weights.official.conversions.plan import ConversionPlan, KeyTableError, size_of
from refcli.weights.official.conversions.renaming import ENCODERS_LEFT_OUT, Names, Renaming
from refcli.weights.tensors import Mismatch

KIND = "CGFormer"
GROUPINGS = (
    ("decoder.cgattention1.", "head.decoder.groupings.0."),
    ("decoder.cgattention2.", "head.decoder.groupings.1."),
)
IN_A_GROUPING: Names = (
    ("tau", "tau"),
    ("norm_v.{kind}", "map_norm.{kind}"),
    ("norm_t.{kind}", "token_norm.{kind}"),
    ("q_proj.{kind}", "query.{kind}"),
    ("k_proj.{kind}", "key.{kind}"),
    ("v_proj.{kind}", "value.{kind}"),
    ("proj.{kind}", "out.0.{kind}"),
    ("norm.{kind}", "mlp.0.{kind}"),
    ("mlp.fc1.{kind}", "mlp.1.{kind}"),
    ("mlp.fc2.{kind}", "mlp.4.{kind}"),
)
THEIR_LEVEL, OUR_LEVEL = "decoder.layers.{layer}.", "head.decoder.levels.{layer}."
THEIR_FUSION, OUR_FUSION = "decoder.fuses.{layer}.fusion.", "head.decoder.levels.{layer}.fusion."
NAMES: Names = (
    ("decoder.tokens.weight", "head.decoder.tokens"),
    *((theirs + a, ours + b) for theirs, ours in GROUPINGS for a, b in IN_A_GROUPING),
    (THEIR_LEVEL + "positional_embedding", OUR_LEVEL + "positions"),
    (THEIR_LEVEL + "loadtoken.normq.{kind}", OUR_LEVEL + "load.token_norm.{kind}"),
    (THEIR_LEVEL + "loadtoken.normk.{kind}", OUR_LEVEL + "load.text_norm.{kind}"),
    (THEIR_LEVEL + "loadtoken.cross_attn.q_proj.weight", OUR_LEVEL + "load.query.weight"),
    (THEIR_LEVEL + "loadtoken.cross_attn.k_proj.weight", OUR_LEVEL + "load.key.weight"),
    (THEIR_LEVEL + "loadtoken.cross_attn.v_proj.weight", OUR_LEVEL + "load.value.weight"),
    (THEIR_LEVEL + "loadtoken.cross_attn.proj.{kind}", OUR_LEVEL + "load.out.0.{kind}"),
    (THEIR_LEVEL + "norm.{kind}", OUR_LEVEL + "load.mlp.0.{kind}"),
    (THEIR_LEVEL + "mlp.fc1.{kind}", OUR_LEVEL + "load.mlp.1.{kind}"),
    (THEIR_LEVEL + "mlp.fc2.{kind}", OUR_LEVEL + "load.mlp.4.{kind}"),
    *((f"{THEIR_FUSION}{part}.{{statistic}}", f"{OUR_FUSION}{part}.{{statistic}}") for part in (0, 1, 3, 4)),
    ("decoder.proj.vis.1.0.weight", "head.projector.upsampler.0.convolution.weight"),
    ("decoder.proj.vis.1.1.{statistic}", "head.projector.upsampler.0.norm.{statistic}"),
    ("decoder.proj.vis.3.0.weight", "head.projector.upsampler.1.convolution.weight"),
    ("decoder.proj.vis.3.1.{statistic}", "head.projector.upsampler.1.norm.{statistic}"),
    ("decoder.proj.vis.4.{kind}", "head.projector.upsampler.2.{kind}"),
    ("decoder.proj.txt.{kind}", "head.projector.kernel.{kind}"),
)
RENAMING = Renaming(
    KIND,
    NAMES,
    left_out=(
        *ENCODERS_LEFT_OUT,
        (
            re.compile(r"decoder\.layers\.\d+\.loadtoken\.(norm|mlp\.fc[12])\.(weight|bias)"),
            "saved by the published code, but never used",
        ),
    ),
    hint_for_unknown="is this the right kind of checkpoint?",
    hint_for_ours="only the decoder and the projector can be written in the official layout",
)
TOKENS = "decoder.tokens.weight"
POSITIONS = "decoder.layers.0.positional_embedding"
TEXT_KEY = "decoder.layers.1.loadtoken.cross_attn.k_proj.weight"
FUSIONS = tuple(f"decoder.fuses.{level}.fusion.0.weight" for level in range(3))


def plan(
    official: Mapping[str, Tensor], *, args: Mapping[str, Any], heads: int | None, image_size: tuple[int, int] | None
) -> ConversionPlan:
    """The decoder and the projector of a head; `args` are not used.

    Raises:
        KeyTableError: missing, misshapen or unknown tensors.
        UsageError: heads or an image size: this is not a tower.
    """
    for given, option in ((heads, "--heads"), (image_size, "--image-size")):
        if given is not None:
            raise UsageError("CGFormer is converted without a tower, so there is nothing to set", where=option)
    settings, tower_dim = _sizes(official)
    head = HeadChoice(name="cgformer", settings=settings.model_dump(mode="json", exclude_defaults=True))
    model = _decoder_of(settings, tower_dim)
    note = "a decoder without pyramid and tower; its tensors have the names of a complete model"
    return RENAMING.plan_head(official, model=model, head=head, tower_dim=tower_dim, note=note)


def _sizes(official: Mapping[str, Tensor]) -> tuple[CGFormerSettings, int]:
    """The head's settings as the shapes give them, and the width of the token features it reads.

    The published code fuses its two coarsest maps first, so only the sum of their channels shows: as in Swin, the
    coarsest is taken to have two thirds of it.
    """
    num_tokens, dim = size_of(official, TOKENS, rank=2, kind=KIND)
    places, _ = size_of(official, POSITIONS, rank=2, kind=KIND)
    _, text_dim = size_of(official, TEXT_KEY, rank=2, kind=KIND)
    coarse, fine, finest = (size_of(official, name, rank=4, kind=KIND)[1] for name in FUSIONS)
    side = math.isqrt(places)
    if side * side != places or num_tokens < 2 or coarse < 3 or min(fine, finest) <= dim:
        raise KeyTableError(
            KIND,
            [Mismatch(name, "wrong shape", tuple(official[name].shape)) for name in (TOKENS, POSITIONS, *FUSIONS)],
        )
    settings = CGFormerSettings(
        dim=dim,
        pyramid_channels=(finest - dim, fine - dim, coarse // 3, coarse - coarse // 3),
        tokens=num_tokens,
        position_grid=(side, side),
        legacy=True,
    )
    return settings, text_dim


def _decoder_of(settings: CGFormerSettings, tower_dim: int) -> dict[str, Tensor]:
    """Our tensors for the published ones, on `meta`."""
    with torch.device("meta"):
        head = CGFormerHead(settings, TowerSettings(dim=tower_dim, heads=1))
    parts = {"head.decoder": head.decoder, "head.projector": head.projector}
    return {f"{prefix}.{name}": tensor for prefix, part in parts.items() for name, tensor in part.state_dict().items()}
