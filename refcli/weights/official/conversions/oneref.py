"""Conversion of OneRef models: the official names and ours, in both directions, and the tasks of a published file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from refcli.config.schema import HeadChoice, ModelSettings
from refcli.errors import WeightsError
from refcli.grounder import Grounder
from refcli.weights.official.conversions.beit3 import (
    STACKED,
    TOWER_NAMES,
    at_image_size,
    text_settings,
    to_ours,
    tower_settings,
)
from refcli.weights.official.conversions.beit3 import to_official as to_official_names
from refcli.weights.official.conversions.plan import ConversionPlan, check_keys, heads_note
from refcli.weights.official.conversions.renaming import Names, our_names

HEAD_NAMES: Names = (
    ("language_head.weight", "head.language_projection.weight"),
    ("vision_head.weight", "head.vision_projection.weight"),
    ("logit_scale", "head.contrast_scale"),
    ("visu_proj.{kind}", "head.pool_projection.{kind}"),
    ("bbox_embed.layers.0.{kind}", "head.box_mlp.0.{kind}"),
    ("bbox_embed.layers.1.{kind}", "head.box_mlp.2.{kind}"),
    ("bbox_embed.layers.2.{kind}", "head.box_mlp.4.{kind}"),
    ("seg_conv1.weight", "head.upsampler.0.weight"),
    ("seg_conv2.weight", "head.upsampler.1.weight"),
    ("seg_conv3.weight", "head.upsampler.2.weight"),
    ("bn1.{statistic}", "head.upsampler.0.norm.{statistic}"),
    ("bn2.{statistic}", "head.upsampler.1.norm.{statistic}"),
    ("bn3.{statistic}", "head.upsampler.2.norm.{statistic}"),
)
NAMES: Names = (*TOWER_NAMES, *HEAD_NAMES)
MASK_HEAD = "seg_conv1.weight"
PRETRAINING_HEADS = re.compile(r"(mlm_head|mlm_sts_head|mim_head|mim_vts_head|layer_norm)\.")
"""MRefM's heads (and the norm of its head on a middle layer); no box or mask depends on them."""
UNUSED = re.compile(r"text_proj\.")
"""Built and saved by the published code, but never used."""
BOX_HEAD = re.compile(r"(visu_proj|bbox_embed)\.")
CONTRAST_SCALE = "logit_scale"


class Converted(NamedTuple):
    """A state dict under our names, and the official tensors that were left out on purpose."""

    state: dict[str, Tensor]
    left_out: tuple[str, ...]


def from_official(official: Mapping[str, Tensor]) -> Converted:
    """Rename an official state dict (without the container) and stack its projections.

    Raises:
        WeightsError: a tensor that neither list knows, or an incomplete query/key/value triple.
    """
    left_out = tuple(name for name in official if PRETRAINING_HEADS.match(name) or UNUSED.match(name))
    state, unknown = to_ours({name: official[name] for name in official if name not in left_out}, NAMES)
    if unknown:
        raise WeightsError(
            f"{len(unknown)} tensors do not belong to a OneRef model: {', '.join(unknown[:5])}",
            where="state dict",
            hint="is this the right kind of checkpoint?",
        )
    return Converted(state, left_out)


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the official names; `from_official` gives it back bit by bit.

    Raises:
        WeightsError: a tensor that the official model does not have.
    """
    return to_official_names(state, NAMES)


def plan(
    official: Mapping[str, Tensor], *, args: Mapping[str, Any], heads: int | None, image_size: tuple[int, int] | None
) -> ConversionPlan:
    """A complete model, with the outputs that the file was trained for.

    Every published file has the box head, but only the REC recipes train it (`use_regress_box`): a file with a mask
    head keeps its box head only if its args say that it was trained. MRefM's heads are kept separately.

    Raises:
        KeyTableError: missing, misshapen or unknown tensors.
        UsageError: heads or an image size that do not fit.
    """
    has_mask_head = MASK_HEAD in official
    is_pretraining = any(PRETRAINING_HEADS.match(name) for name in official)
    box_is_trained = args.get("use_regress_box") is True or not (has_mask_head or is_pretraining)
    contrast = args.get("use_contrastive_loss") is True
    head = {"rec": box_is_trained or not has_mask_head, "res": has_mask_head}
    choice = HeadChoice(
        settings=head
        | ({"similarity_truth": "mask"} if has_mask_head else {})
        | ({"loss_weights": {"contrast": 1.0}} if contrast else {})
    )
    tower = tower_settings(official, kind="OneRef", heads=heads, args=args)
    with torch.device("meta"):
        expected = to_official(Grounder.from_settings(ModelSettings(tower=tower, head=choice)).state_dict())
    check_keys("OneRef", official, expected, also_known=lambda name: _why_dropped(name, head) is not None)
    renamed = from_official({name: official[name] for name in expected})
    state, resized, notes = at_image_size(renamed.state, tower, image_size)
    left = [name for name in official if name not in expected]
    if is_pretraining:
        notes += ("a pretrained model: its box head was not trained; fine-tune it before use",)
    elif has_mask_head and not box_is_trained:
        notes += ("boxes are those of the masks: the file's box head was not trained",)
    return ConversionPlan(
        settings=ModelSettings(tower=resized, text=text_settings(tower, args), head=choice),
        state=state,
        names=our_names(expected, (STACKED, *NAMES)),
        kept_apart={name: official[name] for name in left if PRETRAINING_HEADS.match(name)},
        dropped={name: why for name in left if (why := _why_dropped(name, head))},
        tasks=(("box",) * box_is_trained + ("mask",) * (has_mask_head and not is_pretraining)),
        notes=notes + heads_note(tower.dim, heads),
    )


def _why_dropped(name: str, head: Mapping[str, bool]) -> str | None:
    """Why a known tensor is not needed; "" for a tensor that is kept separately, None for an unknown one."""
    if PRETRAINING_HEADS.match(name):
        return ""
    if UNUSED.match(name):
        return "saved by the published code, but never used"
    if name == CONTRAST_SCALE:
        return "temperature of the contrastive loss, which is off in every published recipe"
    if BOX_HEAD.match(name) and not head["rec"]:
        return "box head that was not trained (the args of the file do not set use_regress_box)"
    return None
