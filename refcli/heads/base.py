"""What every head is: three methods and a settings class."""

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


def tells_existence(config: Settings) -> bool:
    """Whether a head with these settings can answer "no target": where `existence` is on, or where there is a threshold
    for it but no such switch, for the head always does (ReLA)."""
    return bool(getattr(config, "existence", hasattr(config, "existence_threshold")))


class Learned(NamedTuple):
    """How an output of a head comes to know anything."""

    switch: str | None
    """The setting that leaves it out; None: the head always has it."""
    losses: tuple[str, ...]
    """The `loss_weights` that train it; with all of them at 0 it learns nothing."""


class Head(nn.Module, ABC, Generic[Output]):
    """Turns the tower's features into boxes, masks and an existence score.

    A head is built as `Head(config, tower)` with its own validated `Config` and the tower's settings.
    """

    Config: ClassVar[type[Settings]]
    OUTPUTS: ClassVar[Mapping[OutputName, Learned]]
    """What it answers with these settings or others."""
    config: Any
    """The settings it was built from, a `Config`."""
    OPTIONAL_PARTS: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Setting -> the modules that exist only where it is on; they may start fresh, or be left behind."""
    hidden_layers: tuple[int, ...] = ()
    """Layers of the tower whose rows before its final norm the head reads in `Features.hidden`; 0 is the embedding."""

    @abstractmethod
    def forward(self, features: Features) -> Output:
        """The head's private output; only its own `losses` and `predict` read it."""

    @abstractmethod
    def losses(self, output: Output, targets: Targets) -> dict[str, Tensor]:
        """Weighted scalar losses by name; the loop minimises their sum."""

    @abstractmethod
    def predict(self, output: Output) -> Prediction:
        """The answer in the model frame."""
