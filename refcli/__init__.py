"""refcli: say what you mean in an image, get the box and the mask."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Predictor", "__version__"]

if TYPE_CHECKING:
    from refcli.inference.predictor import Predictor


def __getattr__(name: str) -> object:
    """Import the library's entry point on first use, so that `refcli --help` never loads torch."""
    if name == "Predictor":
        from refcli.inference.predictor import Predictor

        return Predictor
    raise AttributeError(f"module 'refcli' has no attribute {name!r}")
