"""The interface of every head: three methods, a settings class and a declaration of outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

from torch import Tensor, nn

from refcli.config.schema import Settings
from refcli.contracts.batch import Targets
from refcli.contracts.prediction import Prediction
from refcli.model.beit3 import Features

Output = TypeVar("Output")
OutputName = Literal["box", "mask", "existence"]


def has_existence_output(config: Settings) -> bool:
    """Whether a head with these settings can answer "no target": `existence` is on, or the settings have an existence
    threshold but no switch."""
    return bool(getattr(config, "existence", hasattr(config, "existence_threshold")))


class Learned(NamedTuple):
    """How an output of a head is switched and trained."""

    switch: str | None
    """The setting that switches it off; None: the head always has it."""
    losses: tuple[str, ...]
    """The keys of `loss_weights` that train it; with all of them at 0 it learns nothing."""


class Head(nn.Module, ABC, Generic[Output]):
    """Turns the tower's features into boxes, masks and an existence score.

    A head is built as `Head(config, tower)` with its own validated `Config` and the tower's settings.
    """

    Config: ClassVar[type[Settings]]
    OUTPUTS: ClassVar[Mapping[OutputName, Learned]]
    """Name -> how it is switched and trained, for every output that the head can have."""
    config: Any
    """The settings that the head was built from, a `Config`."""
    OPTIONAL_PARTS: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Setting -> the modules that exist only if it is on; weights may lack them, or have them unused."""
    reads_regions: ClassVar[bool] = False
    """Whether `losses` needs `Targets.regions`."""
    hidden_layers: tuple[int, ...] = ()
    """Layers of the tower whose tokens before the final norm the head reads in `Features.hidden`; 0: the embedding."""

    @abstractmethod
    def forward(self, features: Features) -> Output:
        """The head's private output, which only its own `losses` and `predict` read."""

    @abstractmethod
    def losses(self, output: Output, targets: Targets) -> dict[str, Tensor]:
        """Weighted scalar losses by name; the loop minimises their sum."""

    @abstractmethod
    def predict(self, output: Output) -> Prediction:
        """The prediction in the model frame."""
