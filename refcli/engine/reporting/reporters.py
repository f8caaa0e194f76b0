"""Who tells the user how training goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from refcli.engine.checkpointing.run_dir import RunDir


class Reporter(Protocol):
    """Listens to the loop; decides nothing."""

    def noted(self, text: str) -> None:
        """Something the user should know."""

    def started(self, *, step: int, total: int) -> None:
        """Training starts, or goes on, after `step` of `total` steps."""

    def stepped(self, step: int) -> None:
        """One more optimiser step is done."""

    def measured(self, metrics: Mapping[str, float]) -> None:
        """A line of metrics was written."""

    def validated(self, metrics: Mapping[str, float], *, is_best: bool) -> None:
        """The model was validated."""

    def saved(self, step: int) -> None:
        """A checkpoint was written."""


class Silence:
    """A reporter that says nothing: for the processes that are not the main one."""

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


class Relay:
    """Passes everything on to another reporter; whoever listens in on the way derives from it."""

    def __init__(self, listener: Reporter) -> None:
        self.listener = listener

    def noted(self, text: str) -> None:
        """Pass on."""
        self.listener.noted(text)

    def started(self, *, step: int, total: int) -> None:
        """Pass on."""
        self.listener.started(step=step, total=total)

    def stepped(self, step: int) -> None:
        """Pass on."""
        self.listener.stepped(step)

    def measured(self, metrics: Mapping[str, float]) -> None:
        """Pass on."""
        self.listener.measured(metrics)

    def validated(self, metrics: Mapping[str, float], *, is_best: bool) -> None:
        """Pass on."""
        self.listener.validated(metrics, is_best=is_best)

    def saved(self, step: int) -> None:
        """Pass on."""
        self.listener.saved(step)


class Logged(Relay):
    """Writes the run's log.txt on the way."""

    def __init__(self, run: RunDir, listener: Reporter) -> None:
        super().__init__(listener)
        self.run = run

    def noted(self, text: str) -> None:
        """Log and pass on."""
        self.run.log(text)
        super().noted(text)

    def started(self, *, step: int, total: int) -> None:
        """Log and pass on."""
        self.run.log(f"started after step {step} of {total}")
        super().started(step=step, total=total)

    def measured(self, metrics: Mapping[str, float]) -> None:
        """Log and pass on."""
        self.run.log(metrics_text(metrics))
        super().measured(metrics)

    def validated(self, metrics: Mapping[str, float], *, is_best: bool) -> None:
        """Log and pass on."""
        self.run.log(metrics_text(metrics) + (" (best so far)" if is_best else ""))
        super().validated(metrics, is_best=is_best)

    def saved(self, step: int) -> None:
        """Log and pass on."""
        self.run.log(f"saved the checkpoint of step {step}")
        super().saved(step)


def metrics_text(metrics: Mapping[str, float]) -> str:
    """One readable line of metrics."""
    return " ".join(f"{name.removeprefix('validation/')} {value:.4g}" for name, value in metrics.items())
