"""Answering expressions about images: requests, decoding, prediction, postprocessing, output folders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refcli.exports import lazy_exports

__all__ = ["Predictor", "Request"]

if TYPE_CHECKING:
    from refcli.inference.predictor import Predictor
    from refcli.inference.requests import Request
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "refcli.inference.predictor": "Predictor",
            "refcli.inference.requests": "Request",
        },
    )
