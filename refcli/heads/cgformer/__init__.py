"""CGFormer: query tokens that group the pixels of an image level by level."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refcli.exports import lazy_exports

__all__ = ["CGFormerHead", "CGFormerLossWeights", "CGFormerOutput", "CGFormerSettings"]

if TYPE_CHECKING:
    from refcli.heads.cgformer.head import CGFormerHead, CGFormerLossWeights, CGFormerOutput, CGFormerSettings
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "refcli.heads.cgformer.head": "CGFormerHead CGFormerLossWeights CGFormerOutput CGFormerSettings",
        },
    )
