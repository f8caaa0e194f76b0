"""Metrics for TensorBoard, if its package is installed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from refcli.engine.reporting.reporters import ForwardingReporter, Reporter
from refcli.errors import ConfigError

WRITER_MODULE = "torch.utils.tensorboard"


class TensorBoard(ForwardingReporter):
    """Writes every metric as a scalar by step, and forwards everything to another reporter.

    Args:
        folder: for the event files, which are created when training starts.
        target: the other reporter.

    Raises:
        ConfigError: the package `tensorboard` is missing.
    """

    def __init__(self, folder: Path, target: Reporter) -> None:
        super().__init__(target)
        self.folder = folder
        self._writer: Any = None
        try:
            self._make_writer = import_module(WRITER_MODULE).SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "TensorBoard is not installed",
                where="train.tensorboard",
                hint="pip install 'refcli[tensorboard]', or set train.tensorboard=false",
            ) from error

    def started(self, *, step: int, total: int) -> None:
        """Open the event file; points after `step`, which a resumed run repeats, are hidden."""
        self._writer = self._make_writer(str(self.folder), purge_step=step + 1)
        super().started(step=step, total=total)

    def measured(self, metrics: Mapping[str, float]) -> None:
        """Write the line under "train/" and forward it."""
        self._write({f"train/{name}": value for name, value in metrics.items() if name != "step"}, metrics)
        super().measured(metrics)

    def validated(self, metrics: Mapping[str, float], *, is_best: bool) -> None:
        """Write the line, whose names begin with "validation/", and forward it."""
        self._write({name: value for name, value in metrics.items() if name != "step"}, metrics)
        super().validated(metrics, is_best=is_best)

    def _write(self, scalars: Mapping[str, float], line: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, int(line["step"]))
        self._writer.flush()
