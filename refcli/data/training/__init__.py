"""From the store to batches: datasets, transforms, augmentation, sampling and mixtures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refcli.exports import lazy_exports

__all__ = ["Collate", "GroundingDataset", "Sample", "letterbox", "make_sample"]

if TYPE_CHECKING:
    from refcli.data.training.collate import Collate
    from refcli.data.training.dataset import GroundingDataset
    from refcli.data.training.transforms import Sample, letterbox, make_sample
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "refcli.data.training.collate": "Collate",
            "refcli.data.training.dataset": "GroundingDataset",
            "refcli.data.training.transforms": "Sample letterbox make_sample",
        },
    )
