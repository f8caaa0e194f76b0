"""The store: one Parquet file per split, a manifest that lists them, and the images beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refcli.exports import lazy_exports

__all__ = ["Store", "StoreSplit"]

if TYPE_CHECKING:
    from refcli.data.store.read import Store, StoreSplit
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "refcli.data.store.read": "Store StoreSplit",
        },
    )
