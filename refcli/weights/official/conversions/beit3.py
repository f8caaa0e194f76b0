"""Conversion of BEiT-3 towers: the official names and ours, in both directions, and the sizes from the shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from refcli.config.schema import TextSettings, TowerSettings
from refcli.errors import UsageError, WeightsError
from refcli.model.beit3 import OneTower
from refcli.model.positions import NUM_EXTRA_ROWS, NUM_UNUSED_ROWS, resample_vision_positions
from refcli.text.tokenizer import OFFICIAL_NAME
from refcli.weights.layout import TowerOnlySettings
from refcli.weights.official.conversions.plan import (
    ConversionPlan,
    KeyTableError,
    check_keys,
    count_heads,
    heads_note,
    size_of,
)
from refcli.weights.official.conversions.renaming import Names, match_fields, our_names, rename
from refcli.weights.tensors import Mismatch

THEIR_LAYER, OUR_LAYER = "beit3.encoder.layers.{layer}.", "tower.encoder.blocks.{layer}."
TOWER_NAMES: Names = (
    ("beit3.text_embed.weight", "tower.text_embedding.words.weight"),
    ("beit3.vision_embed.{token}_token", "tower.vision_embedding.{token}_token"),
    ("beit3.vision_embed.proj.{kind}", "tower.vision_embedding.projection.{kind}"),
    ("beit3.encoder.embed_positions.A.weight", "tower.vision_embedding.positions"),
    ("beit3.encoder.embed_positions.B.weight", "tower.text_embedding.positions"),
    ("beit3.encoder.layer_norm.{expert}.{kind}", "tower.encoder.norm.{expert}.{kind}"),
    (THEIR_LAYER + "self_attn.out_proj.{expert}.{kind}", OUR_LAYER + "attention.out.{expert}.{kind}"),
    (THEIR_LAYER + "self_attn.inner_attn_ln.{expert}.{kind}", OUR_LAYER + "attention.inner_norm.{expert}.{kind}"),
    (THEIR_LAYER + "self_attn_layer_norm.{expert}.{kind}", OUR_LAYER + "attention_norm.{expert}.{kind}"),
    (THEIR_LAYER + "ffn.{expert}.ffn_layernorm.{kind}", OUR_LAYER + "ffn.{expert}.norm.{kind}"),
    (THEIR_LAYER + "ffn.{expert}.{linear}.{kind}", OUR_LAYER + "ffn.{expert}.{linear}.{kind}"),
    (THEIR_LAYER + "final_layer_norm.{expert}.{kind}", OUR_LAYER + "ffn_norm.{expert}.{kind}"),
)
STACKED = (
    THEIR_LAYER + "self_attn.{part}_proj.{expert}.{kind}",
    OUR_LAYER + "attention.qkv.{expert}.{kind}",
)
"""Query, key and value are three official tensors; ours stacks them in this order."""
WORDS, PATCHES = "beit3.text_embed.weight", "beit3.vision_embed.proj.weight"
VISION_ROWS, TEXT_ROWS = "beit3.encoder.embed_positions.A.weight", "beit3.encoder.embed_positions.B.weight"
FIRST_FFN = THEIR_LAYER.format(layer=0) + "ffn.A.fc1.weight"
OUR_VISION_ROWS = "tower.vision_embedding.positions"
PUBLISHED_WORD_ROWS = 64_010
"""Rows of the published word table; beit3.spm has ids for 64,002 of them."""
MAX_SIDE = 4096
"""In pixels. With patches of 16 pixels these are 65,536 patches, far too many for the memory of joint attention."""
KEPT_APART = re.compile(
    r"(mlm_head|mim_head|language_head|vision_head|pooler|head|fc_norm)\.|logit_scale$",
)
"""Heads of published BEiT-3 files: those of pretraining and of the fine-tuned tasks."""


class Renamed(NamedTuple):
    """A state dict under our names, and the official names that fit no template."""

    state: dict[str, Tensor]
    unknown: tuple[str, ...]


def to_ours(official: Mapping[str, Tensor], names: Names) -> Renamed:
    """Rename official tensors and stack their projections."""
    state: dict[str, Tensor] = {}
    unknown: list[str] = []
    stacks: dict[str, dict[str, Tensor]] = {}
    for name, tensor in official.items():
        if fields := match_fields(STACKED[0], name):
            stacks.setdefault(STACKED[1].format(**fields), {})[fields["part"]] = tensor
        elif ours := rename(name, names):
            state[ours] = tensor
        else:
            unknown.append(name)
    unknown += [f"{name}: only {'/'.join(parts)} present" for name, parts in stacks.items() if len(parts) != 3]
    state |= {name: torch.cat([parts[p] for p in "qkv"]) for name, parts in stacks.items() if len(parts) == 3}
    return Renamed(state, tuple(unknown))


def to_official(state: Mapping[str, Tensor], names: Names = TOWER_NAMES) -> dict[str, Tensor]:
    """Our tensors under the official names: the inverse of `to_ours`; the three projections are views.

    Raises:
        WeightsError: a tensor that the official model does not have.
    """
    official: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, tensor in state.items():
        if fields := match_fields(STACKED[1], name):
            pieces = zip("qkv", tensor.chunk(3), strict=True)
            official |= {STACKED[0].format(part=part, **fields): piece for part, piece in pieces}
        elif theirs := rename(name, ((ours, theirs) for theirs, ours in names)):
            official[theirs] = tensor
        else:
            unknown.append(name)
    if unknown:
        raise WeightsError(
            f"{len(unknown)} tensors have no place in the official model: {', '.join(sorted(unknown)[:5])}",
            where="state dict",
            hint="only models with the published heads and sizes can be written in the official layout",
        )
    return official


def tower_settings(
    official: Mapping[str, Tensor], *, kind: str, heads: int | None, args: Mapping[str, Any]
) -> TowerSettings:
    """Read the sizes of a tower from the shapes of its official state dict.

    Args:
        official: tensors by official name.
        kind: named in errors.
        heads: number of attention heads; None means heads of 64 channels, as published.
        args: the training arguments in the file, which give `drop_path`.

    Raises:
        KeyTableError: missing or misshapen tensors.
        WeightsError: positions that do not form a square grid.
        UsageError: a width that does not divide into the heads.
    """
    vocabulary_size, dim = size_of(official, WORDS, rank=2, kind=kind)
    _, _, _, patch_size = size_of(official, PATCHES, rank=4, kind=kind)
    rows, _ = size_of(official, VISION_ROWS, rank=2, kind=kind)
    text_rows, _ = size_of(official, TEXT_ROWS, rank=2, kind=kind)
    ffn_dim, _ = size_of(official, FIRST_FFN, rank=2, kind=kind)
    side = math.isqrt(max(rows - NUM_EXTRA_ROWS, 0))
    if side < 1 or side * side != rows - NUM_EXTRA_ROWS or text_rows <= NUM_UNUSED_ROWS:
        raise KeyTableError(
            kind,
            [
                Mismatch(VISION_ROWS, "wrong shape", (rows, dim)),
                Mismatch(TEXT_ROWS, "wrong shape", (text_rows, dim)),
            ],
        )
    drop_path = args.get("drop_path")
    return TowerSettings(
        image_size=(side * patch_size, side * patch_size),
        patch_size=patch_size,
        dim=dim,
        layers=len({name.split(".")[3] for name in official if name.startswith("beit3.encoder.layers.")}),
        heads=count_heads(dim, heads),
        ffn_dim=ffn_dim,
        vocabulary_size=vocabulary_size,
        max_text_positions=text_rows,
        **({"drop_path": drop_path} if isinstance(drop_path, float) and 0 <= drop_path < 1 else {}),
    )


def text_settings(tower: TowerSettings, args: Mapping[str, Any]) -> TextSettings:
    """The official tokenizer, with the token limit of the training (64 in every published script)."""
    max_tokens = args.get("max_query_len")
    fits = isinstance(max_tokens, int) and 3 <= max_tokens <= tower.max_text_positions - NUM_UNUSED_ROWS
    return TextSettings(tokenizer=OFFICIAL_NAME, **({"max_tokens": max_tokens} if fits else {}))


def at_image_size(
    state: dict[str, Tensor], tower: TowerSettings, image_size: tuple[int, int] | None
) -> tuple[dict[str, Tensor], TowerSettings, tuple[str, ...]]:
    """A tower's state (our names) and settings for another image size, and a note about the change.

    The vision positions are cast to float32 and resampled, as the published code does from 224 to 384.

    Raises:
        UsageError: a size that is no multiple of the patch, or above `MAX_SIDE`.
    """
    if image_size is None or image_size == tower.image_size:
        return state, tower, ()
    if any(side < 1 or side % tower.patch_size for side in image_size):
        raise UsageError(
            f"the image size {image_size} is not a multiple of the patch size {tower.patch_size}", where="--image-size"
        )
    if max(image_size) > MAX_SIDE:
        raise UsageError(
            f"the image size {image_size} is above {MAX_SIDE} pixels a side",
            where="--image-size",
            hint="published models have 224 or 384",
        )
    resized = TowerSettings(**(tower.model_dump() | {"image_size": image_size}))
    positions = resample_vision_positions(state[OUR_VISION_ROWS].float(), old_grid=tower.grid, new_grid=resized.grid)
    note = f"vision positions resampled from {tower.grid} to {resized.grid} patches"
    return state | {OUR_VISION_ROWS: positions}, resized, (note,)


def plan(
    official: Mapping[str, Tensor], *, args: Mapping[str, Any], heads: int | None, image_size: tuple[int, int] | None
) -> ConversionPlan:
    """A tower without a head; other tensors of the file are kept separately.

    Raises:
        KeyTableError: missing, misshapen or unknown tensors.
        UsageError: heads or an image size that do not fit.
    """
    tower = tower_settings(official, kind="BEiT-3", heads=heads, args=args)
    with torch.device("meta"):
        model = {f"tower.{name}": tensor for name, tensor in OneTower(tower).state_dict().items()}
    expected = to_official(model)
    check_keys("BEiT-3", official, expected, also_known=lambda name: bool(KEPT_APART.match(name)))
    renamed = to_ours({name: official[name] for name in expected}, TOWER_NAMES)
    state, resized, notes = at_image_size(renamed.state, tower, image_size)
    return ConversionPlan(
        settings=TowerOnlySettings(tower=resized, text=text_settings(tower, args)),
        state=state,
        names=our_names(expected, (STACKED, *TOWER_NAMES)),
        kept_apart={name: tensor for name, tensor in official.items() if name not in expected},
        notes=("a tower without a head: start `refcli finetune` from it", *notes, *heads_note(tower.dim, heads)),
    )
