"""Progress reporters: what the loop reports, and the run's log.txt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from refcli.engine.checkpointing.run_dir import RunDir


class Reporter(Protocol):
    """Receives the progress of the loop; it has no influence on training."""

    def noted(self, text: str) -> None:
        """A message for the user."""

    def started(self, *, step: int, total: int) -> None:
        """Training starts or continues after `step` of `total` steps."""

    def stepped(self, step: int) -> None:
        """An optimiser step is done."""

    def measured(self, metrics: Mapping[str, float]) -> None:
        """A line of metrics was written."""

    def validated(self, metrics: Mapping[str, float], *, is_best: bool) -> None:
        """The model was validated."""

    def saved(self, step: int) -> None:
        """A checkpoint was written."""


class SilentReporter:
    """A reporter that does nothing, for all processes except the main one."""

    def noted(self, text: str) -> None:
        """Nothing."""

    def started(self, *, step: int, total: int) -> None:
        """Nothing."""

    def stepped(self, step: int) -> None:
        """Nothing."""

    def measured(self, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def validated(self, metrics: Mapping[str, float], *, is_best: bool) -> None:
        """Nothing."""

    def saved(self, step: int) -> None:
        """Nothing."""


class ForwardingReporter:
    """Forwards everything to another reporter; base class of reporters that also do something themselves."""

    def __init__(self, target: Reporter) -> None:
        self.target = target

    def noted(self, text: str) -> None:
        """Forward it."""
        self.target.noted(text)

    def started(self, *, step: int, total: int) -> None:
        """Forward it."""
        self.target.started(step=step, total=total)

    def stepped(self, step: int) -> None:
        """Forward it."""
        self.target.stepped(step)

    def measured(self, metrics: Mapping[str, float]) -> None:
        """Forward it."""
        self.target.measured(metrics)

    def validated(self, metrics: Mapping[str, float], *, is_best: bool) -> None:
        """Forward it."""
        self.target.validated(metrics, is_best=is_best)

    def saved(self, step: int) -> None:
        """Forward it."""
        self.target.saved(step)


class LoggingReporter(ForwardingReporter):
    """Writes the run's log.txt."""

    def __init__(self, run: RunDir, target: Reporter) -> None:
        super().__init__(target)
        self.run = run

    def noted(self, text: str) -> None:
        """Log and forward it."""
        self.run.log(text)
        super().noted(text)

    def started(self, *, step: int, total: int) -> None:
        """Log and forward it."""
        self.run.log(f"started after step {step} of {total}")
        super().started(step=step, total=total)

    def measured(self, metrics: Mapping[str, float]) -> None:
        """Log and forward it."""
        self.run.log(metrics_text(metrics))
        super().measured(metrics)

    def validated(self, metrics: Mapping[str, float], *, is_best: bool) -> None:
        """Log and forward it."""
        self.run.log(metrics_text(metrics) + (" (best so far)" if is_best else ""))
        super().validated(metrics, is_best=is_best)

    def saved(self, step: int) -> None:
        """Log and forward it."""
        self.run.log(f"saved the checkpoint of step {step}")
        super().saved(step)


def metrics_text(metrics: Mapping[str, float]) -> str:
    """One readable line of metrics."""
    return " ".join(f"{name.removeprefix('validation/')} {value:.4g}" for name, value in metrics.items())
