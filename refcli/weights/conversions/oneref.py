"""Names of the official OneRef / BEiT-3 state dicts, and of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from refcli.errors import WeightsError

EXPERTS = {"A": "vision", "B": "language"}
"""torchscale calls the vision expert A and the language expert B."""
LAYER = r"beit3\.encoder\.layers\.(\d+)\."
BLOCK = r"tower.encoder.blocks.\1."
RENAMES: tuple[tuple[str, str], ...] = (
    (r"beit3\.text_embed\.weight", "tower.text_embedding.words.weight"),
    (r"beit3\.vision_embed\.(mask_token|cls_token)", r"tower.vision_embedding.\1"),
    (r"beit3\.vision_embed\.proj\.(\w+)", r"tower.vision_embedding.projection.\1"),
    (r"beit3\.encoder\.embed_positions\.A\.weight", "tower.vision_embedding.positions"),
    (r"beit3\.encoder\.embed_positions\.B\.weight", "tower.text_embedding.positions"),
    (r"beit3\.encoder\.layer_norm\.(A|B)\.(\w+)", r"tower.encoder.norm.\1.\2"),
    (
        LAYER + r"self_attn\.out_proj\.(A|B)\.(\w+)",
        BLOCK + r"attention.out.\2.\3",
    ),
    (
        LAYER + r"self_attn\.inner_attn_ln\.(A|B)\.(\w+)",
        BLOCK + r"attention.inner_norm.\2.\3",
    ),
    (
        LAYER + r"self_attn_layer_norm\.(A|B)\.(\w+)",
        BLOCK + r"attention_norm.\2.\3",
    ),
    (LAYER + r"ffn\.(A|B)\.ffn_layernorm\.(\w+)", BLOCK + r"ffn.\2.norm.\3"),
    (LAYER + r"ffn\.(A|B)\.(fc1|fc2)\.(\w+)", BLOCK + r"ffn.\2.\3.\4"),
    (LAYER + r"final_layer_norm\.(A|B)\.(\w+)", BLOCK + r"ffn_norm.\2.\3"),
    (r"language_head\.weight", "head.language_projection.weight"),
    (r"vision_head\.weight", "head.vision_projection.weight"),
    (r"logit_scale", "head.contrast_scale"),
    (r"visu_proj\.(\w+)", r"head.pool_projection.\1"),
    (r"bbox_embed\.layers\.0\.(\w+)", r"head.box_mlp.0.\1"),
    (r"bbox_embed\.layers\.1\.(\w+)", r"head.box_mlp.2.\1"),
    (r"bbox_embed\.layers\.2\.(\w+)", r"head.box_mlp.4.\1"),
    (r"seg_conv1\.weight", "head.upsampler.0.weight"),
    (r"seg_conv2\.weight", "head.upsampler.1.weight"),
    (r"seg_conv3\.weight", "head.upsampler.2.weight"),
    (r"bn1\.(\w+)", r"head.upsampler.0.norm.\1"),
    (r"bn2\.(\w+)", r"head.upsampler.1.norm.\1"),
    (r"bn3\.(\w+)", r"head.upsampler.2.norm.\1"),
)
PROJECTION = re.compile(LAYER + r"self_attn\.([qkv])_proj\.(A|B)\.(weight|bias)")
"""Query, key and value are three tensors there and one here, stacked in this order."""
NEVER_USED = re.compile(r"text_proj\.|layer_norm\.|mlm_head\.|mlm_sts_head\.|mim_head\.|mim_vts_head\.")
"""Tensors of a published file that no box or mask depends on."""


class Converted(NamedTuple):
    """A state dict under our names, and the official tensors that were left out on purpose."""

    state: dict[str, Tensor]
    left_out: tuple[str, ...]


def from_official(official: Mapping[str, Tensor]) -> Converted:
    """Rename an official state dict (without the container) and stack its projections.

    Raises:
        WeightsError: a tensor that neither list knows, or an incomplete query/key/value triple.
    """
    state: dict[str, Tensor] = {}
    stacks: dict[str, dict[str, Tensor]] = {}
    left_out: list[str] = []
    unknown: list[str] = []
    for name, tensor in official.items():
        if found := PROJECTION.fullmatch(name):
            layer, part, expert, kind = found.groups()
            stacks.setdefault(f"tower.encoder.blocks.{layer}.attention.qkv.{EXPERTS[expert]}.{kind}", {})[part] = tensor
        elif ours := rename(name):
            state[ours] = tensor
        elif NEVER_USED.match(name):
            left_out.append(name)
        else:
            unknown.append(name)
    unknown += [f"{name}: only {'/'.join(parts)} present" for name, parts in stacks.items() if len(parts) != 3]
    if unknown:
        raise WeightsError(
            f"{len(unknown)} tensors do not belong to a OneRef model: {', '.join(unknown[:5])}",
            where="state dict",
            hint="is this the right kind of checkpoint?",
        )
    state |= {name: torch.cat([parts[part] for part in "qkv"]) for name, parts in stacks.items()}
    return Converted(state, tuple(left_out))


def rename(name: str) -> str | None:
    """Our name of one official tensor, or None."""
    for pattern, replacement in RENAMES:
        if found := re.fullmatch(pattern, name):
            return re.sub(r"\.(A|B)\.", lambda expert: f".{EXPERTS[expert[1]]}.", found.expand(replacement))
    return None
