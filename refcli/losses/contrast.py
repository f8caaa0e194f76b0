"""Image-text contrast between the two class vectors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def clip_contrast(
    vision: Float[Tensor, "batch dim"], language: Float[Tensor, "batch dim"], logit_scale: Float[Tensor, ""]
) -> Float[Tensor, " batch"]:
    """Symmetric CLIP loss of every pair over unit vectors; `logit_scale` is the inverse temperature (exponentiated)."""
    logits = logit_scale * vision @ language.T
    truth = torch.arange(vision.shape[0], device=vision.device)
    return (F.cross_entropy(logits, truth, reduction="none") + F.cross_entropy(logits.T, truth, reduction="none")) / 2
