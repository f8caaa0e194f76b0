"""Loss functions under their usual names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refcli.exports import lazy_exports

__all__ = [
    "box_giou",
    "box_l1",
    "clip_contrast",
    "dice",
    "mean_over",
    "mim_loss",
    "mlm_loss",
    "sigmoid_focal",
    "sts_loss",
    "sum_per",
    "vts_loss",
]

if TYPE_CHECKING:
    from refcli.losses.averages import mean_over, sum_per
    from refcli.losses.boxes import box_giou, box_l1
    from refcli.losses.contrast import clip_contrast
    from refcli.losses.masks import dice, sigmoid_focal
    from refcli.losses.mrefm import mim_loss, mlm_loss, sts_loss, vts_loss
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "refcli.losses.averages": "mean_over sum_per",
            "refcli.losses.boxes": "box_giou box_l1",
            "refcli.losses.contrast": "clip_contrast",
            "refcli.losses.masks": "dice sigmoid_focal",
            "refcli.losses.mrefm": "mim_loss mlm_loss sts_loss vts_loss",
        },
    )
