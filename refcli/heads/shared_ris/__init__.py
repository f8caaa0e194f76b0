"""Shared-RIS: one fusion network and one decoder shared by image and words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refcli.exports import lazy_exports

__all__ = ["SharedRISHead", "SharedRISLossWeights", "SharedRISOutput", "SharedRISSettings"]

if TYPE_CHECKING:
    from refcli.heads.shared_ris.head import SharedRISHead, SharedRISLossWeights, SharedRISOutput, SharedRISSettings
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "refcli.heads.shared_ris.head": "SharedRISHead SharedRISLossWeights SharedRISOutput SharedRISSettings",
        },
    )
