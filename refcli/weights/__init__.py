"""Weights: pulled, converted, saved, loaded, described and verified."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refcli.exports import lazy_exports

__all__ = ["LoadedWeights", "load_weights", "save_weights"]

if TYPE_CHECKING:
    from refcli.weights.directory import LoadedWeights, load_weights, save_weights
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "refcli.weights.directory": "LoadedWeights load_weights save_weights",
        },
    )
