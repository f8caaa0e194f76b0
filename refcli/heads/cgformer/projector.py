"""The mask of CGFormer: enlarged maps under a 1x1 kernel made of the referent token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from refcli.heads.shared.upsampler import BilinearUpsampler


class Projector(nn.Module):
    """Mask logit of a place = <its vector, w> + b, where [w, b] is a linear function of the referent token.

    Args:
        dim: width of maps and token.
        doublings: how often the maps are doubled first; with 2, these convolutions are most of the head's cost.
        stray_padding: apply the 1x1 kernel with a padding of 1, as the published code does: the mask gets a frame of
            one pixel whose logit is b.
    """

    def __init__(self, dim: int, *, doublings: int, stray_padding: bool) -> None:
        super().__init__()
        self.stray_padding = stray_padding
        self.upsampler = BilinearUpsampler(dim, doublings=doublings)
        self.kernel = nn.Linear(dim, dim + 1)

    def forward(
        self, maps: Float[Tensor, "batch dim rows columns"], referent: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch mask_rows mask_columns"]:
        """Mask logits."""
        maps = self.upsampler(maps)
        kernel: Tensor = self.kernel(referent).to(maps.dtype)
        logits = torch.einsum("bdhw,bd->bhw", maps, kernel[:, :-1])
        if self.stray_padding:
            logits = F.pad(logits, (1, 1, 1, 1))
        return logits + kernel[:, -1, None, None]
