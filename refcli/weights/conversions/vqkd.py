"""Names of the official VQ-KD (BEiT v2) state dicts, and of ours."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from refcli.config.pretraining import VisualTokenizerSettings
from refcli.errors import UsageError, WeightsError
from refcli.model.visual_tokenizer import VisualTokenizer
from refcli.weights.conversions.plan import HEAD_DIM, MAX_ROWS_SHOWN, Plan, count_heads, heads_note

POSITIONS, PATCHES, CODEBOOK = "encoder.pos_embed", "encoder.patch_embed.proj.weight", "quantize.embedding.weight"
NAMES: Mapping[str, str] = {
    "encoder.cls_token": "embedding.cls_token",
    POSITIONS: "embedding.positions",
    PATCHES: "embedding.projection.weight",
    "encoder.patch_embed.proj.bias": "embedding.projection.bias",
    "encoder.fc_norm.weight": "norm.weight",
    "encoder.fc_norm.bias": "norm.bias",
    "encode_task_layer.0.weight": "code_projection.0.weight",
    "encode_task_layer.0.bias": "code_projection.0.bias",
    "encode_task_layer.2.weight": "code_projection.2.weight",
    "encode_task_layer.2.bias": "code_projection.2.bias",
    CODEBOOK: "codebook",
}
"""Official name -> ours, outside the blocks. Every tensor keeps its shape."""
BLOCK_NAMES: Mapping[str, str] = {
    "norm1.weight": "attention_norm.weight",
    "norm1.bias": "attention_norm.bias",
    "attn.qkv.weight": "attention.qkv.weight",
    "attn.q_bias": "attention.query_bias",
    "attn.v_bias": "attention.value_bias",
    "attn.proj.weight": "attention.out.weight",
    "attn.proj.bias": "attention.out.bias",
    "norm2.weight": "ffn_norm.weight",
    "norm2.bias": "ffn_norm.bias",
    "mlp.fc1.weight": "ffn.0.weight",
    "mlp.fc1.bias": "ffn.0.bias",
    "mlp.fc2.weight": "ffn.2.weight",
    "mlp.fc2.bias": "ffn.2.bias",
}
"""The same inside block N: `encoder.blocks.N.` (official), `blocks.N.` (ours)."""
OFFICIAL_BLOCKS, OUR_BLOCKS = "encoder.blocks.", "blocks."
FIRST_FFN = "encoder.blocks.0.mlp.fc1.weight"
NEVER_USED = re.compile(
    r"(decoder|decode_task_layer)\."
    r"|quantize\.(embedding\.)?cluster_size$|quantize\.embedding\.(embed_avg|initted)$"
    r"|loss|teacher|scaling"
)
"""What only the training of a tokenizer needs: decoder, moving averages of the codebook, losses, teacher, its input."""


def settings_of(official: Mapping[str, Tensor], *, heads: int | None = None) -> VisualTokenizerSettings:
    """Read a tokenizer's sizes off the shapes of its official state dict.

    Args:
        official: the state dict without its container; tensors on `meta` will do.
        heads: number of attention heads; None means heads of 64 channels, as published.

    Raises:
        WeightsError: missing, unknown or misshapen tensors, or a width that does not divide into such heads.
    """
    names = _names_of(official)
    _, rows, _ = _shape(official, POSITIONS, rank=3)
    dim, _, _, patch_size = _shape(official, PATCHES, rank=4)
    ffn_dim, _ = _shape(official, FIRST_FFN, rank=2)
    num_codes, code_dim = _shape(official, CODEBOOK, rank=2)
    side = math.isqrt(rows - 1)
    if side < 1 or side * side != rows - 1:
        raise _refusal([f"{POSITIONS} has {rows} rows, not 1 and a square number"])
    num_heads = count_heads(dim, heads)
    if num_heads is None:
        wanted_heads = f"heads of {HEAD_DIM} channels" if heads is None else f"{heads} heads"
        raise WeightsError(
            f"a width of {dim} channels does not divide into {wanted_heads}",
            where="state dict",
            hint="the weights do not tell the number of attention heads: give it to `refcli weights convert --heads`",
        )
    settings = VisualTokenizerSettings(
        image_size=side * patch_size,
        patch_size=patch_size,
        dim=dim,
        layers=_num_blocks(official, OFFICIAL_BLOCKS),
        heads=num_heads,
        ffn_dim=ffn_dim,
        num_codes=num_codes,
        code_dim=code_dim,
    )
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in VisualTokenizer(settings).state_dict().items()}
    misshapen = [
        f"{theirs} has shape {tuple(official[theirs].shape)}, not {wanted[ours]}"
        for theirs, ours in names.items()
        if tuple(official[theirs].shape) != wanted[ours]
    ]
    if misshapen:
        raise _refusal(misshapen)
    return settings


def from_official(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official state dict (without its container); the tensors themselves are passed on, not copied.

    What `left_out` lists is dropped.

    Raises:
        WeightsError: missing, unknown or misshapen tensors.
    """
    settings_of(official, heads=1)  # for its checks: no shape depends on the heads
    return {ours: official[theirs] for theirs, ours in _names_of(official).items()}


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the official names: the inverse of `from_official`, without what that left out.

    Raises:
        WeightsError: missing or unknown tensors.
    """
    names = {ours: theirs for theirs, ours in _names(_num_blocks(state, OUR_BLOCKS)).items()}
    _refuse_other_names(state, names)
    return {theirs: state[ours] for ours, theirs in names.items()}


def left_out(official: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The official tensors that no code id depends on and that are not converted."""
    return tuple(name for name in official if NEVER_USED.match(name))


def plan(
    official: Mapping[str, Tensor], *, args: Mapping[str, Any], heads: int | None, image_size: tuple[int, int] | None
) -> Plan:
    """The encoder and its codebook; nothing is read off `args`.

    Raises:
        UsageError: an image size: this model resamples its positions for every picture itself.
        WeightsError: missing, misshapen or unknown tensors, or a width that does not divide into the heads.
    """
    if image_size is not None:
        raise UsageError(
            "a visual tokenizer has no image size to change", where="--image-size", hint="it takes pictures of any size"
        )
    settings = settings_of(official, heads=heads)
    return Plan(
        settings=settings,
        state=from_official(official),
        names=_names_of(official),
        dropped=dict.fromkeys(left_out(official), "only the training of the tokenizer needs it"),
        notes=("a visual tokenizer, for `refcli pretrain`", *heads_note(settings.dim, heads)),
    )


def _names_of(official: Mapping[str, Tensor]) -> dict[str, str]:
    """Official name -> ours, for a state dict that has exactly these names and some that are never used."""
    names = _names(_num_blocks(official, OFFICIAL_BLOCKS))
    _refuse_other_names(official.keys() - set(left_out(official)), names)
    return names


def _names(num_blocks: int) -> dict[str, str]:
    blocks = {
        f"{OFFICIAL_BLOCKS}{block}.{theirs}": f"{OUR_BLOCKS}{block}.{ours}"
        for block in range(num_blocks)
        for theirs, ours in BLOCK_NAMES.items()
    }
    return {**NAMES, **blocks}


def _num_blocks(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many different blocks there are, and at least one: a gap in the numbers then shows as a missing tensor."""
    return max(1, len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)}))


def _refuse_other_names(given: Iterable[str], wanted: Mapping[str, str]) -> None:
    given = set(given)
    problems = [f"{name} is missing" for name in wanted if name not in given]
    problems += [f"{name} is not part of the model" for name in sorted(given) if name not in wanted]
    if problems:
        raise _refusal(problems)


def _shape(official: Mapping[str, Tensor], name: str, *, rank: int) -> tuple[int, ...]:
    shape = tuple(official[name].shape)
    if len(shape) != rank or 0 in shape:
        raise _refusal([f"{name} has shape {shape}, not {rank} sides of at least 1"])
    return shape


def _refusal(problems: Sequence[str]) -> WeightsError:
    shown = "".join(f"\n  {problem}" for problem in problems[:MAX_ROWS_SHOWN])
    more = f"\n  and {len(problems) - MAX_ROWS_SHOWN} more" if len(problems) > MAX_ROWS_SHOWN else ""
    return WeightsError(
        f"{len(problems)} tensors do not make a VQ-KD tokenizer:{shown}{more}",
        where="state dict",
        hint="is the file complete, and of this kind?",
    )
