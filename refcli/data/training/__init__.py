"""From the store to batches: datasets, transforms, augmentation, sampling and mixtures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refcli.exports import lazy_exports

__all__ = ["Collate", "GroundingDataset", "Sample", "letterbox", "make_sample"]

if TYPE_CHECKING:
    from refcli.data.training.collate import Collate
    from refcli.data.training.dataset import GroundingDataset, Sample, make_sample
    from refcli.data.training.transforms import letterbox
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "refcli.data.training.collate": "Collate",
            "refcli.data.training.dataset": "GroundingDataset Sample make_sample",
            "refcli.data.training.transforms": "letterbox",
        },
    )
