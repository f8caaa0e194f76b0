"""OneRef (NeurIPS 2024): a box (REC) and a mask (RES) directly from the features of the tower."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refcli.exports import lazy_exports

__all__ = ["OneRefHead", "OneRefLossWeights", "OneRefOutput", "OneRefSettings"]

if TYPE_CHECKING:
    from refcli.heads.oneref.head import OneRefHead, OneRefLossWeights, OneRefOutput, OneRefSettings
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "refcli.heads.oneref.head": "OneRefHead OneRefLossWeights OneRefOutput OneRefSettings",
        },
    )
