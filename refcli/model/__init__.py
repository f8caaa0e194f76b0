"""OneTower: the BEiT-3 multiway transformer, and the visual tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refcli.exports import lazy_exports

__all__ = ["Features", "Multiway", "OneTower", "VisualTokenizer"]

if TYPE_CHECKING:
    from refcli.model.beit3 import Features, OneTower
    from refcli.model.multiway import Multiway
    from refcli.model.visual_tokenizer import VisualTokenizer
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "refcli.model.beit3": "Features OneTower",
            "refcli.model.multiway": "Multiway",
            "refcli.model.visual_tokenizer": "VisualTokenizer",
        },
    )
