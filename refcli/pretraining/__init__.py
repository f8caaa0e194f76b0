"""MRefM: Mask Referring Modelling, the pre-training of OneRef."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refcli.exports import lazy_exports

__all__ = ["MRefM", "PixelClusters", "TokenizerCodes", "VisualCodes", "VisualTokenizerTraining"]

if TYPE_CHECKING:
    from refcli.pretraining.mrefm import MRefM
    from refcli.pretraining.pixel_clusters import PixelClusters
    from refcli.pretraining.visual_codes import TokenizerCodes, VisualCodes
    from refcli.pretraining.visual_tokenizer_training import VisualTokenizerTraining
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "refcli.pretraining.mrefm": "MRefM",
            "refcli.pretraining.pixel_clusters": "PixelClusters",
            "refcli.pretraining.visual_tokenizer_training": "VisualTokenizerTraining",
            "refcli.pretraining.visual_codes": "TokenizerCodes VisualCodes",
        },
    )
