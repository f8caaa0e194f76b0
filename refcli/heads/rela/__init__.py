"""ReLA: region-language attention for generalised referring expression segmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refcli.exports import lazy_exports

__all__ = ["RelaHead", "RelaLossWeights", "RelaOutput", "RelaSettings"]

if TYPE_CHECKING:
    from refcli.heads.rela.head import RelaHead, RelaLossWeights, RelaOutput, RelaSettings
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "refcli.heads.rela.head": "RelaHead RelaLossWeights RelaOutput RelaSettings",
        },
    )
