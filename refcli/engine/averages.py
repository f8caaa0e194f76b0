"""Means over the steps since the last line of metrics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from refcli.engine.distributed import World


class Averages:
    """Collects loss terms, gradient norms and times until a line of metrics is due."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._samples = 0
        self._seconds = 0.0
        self._waited = 0.0

    def add(self, values: Mapping[str, float]) -> None:
        """Add one observation of each named value; a term may be absent from some steps."""
        for name, value in values.items():
            self._sums[name] += value
            self._counts[name] += 1

    def add_time(self, seconds: float, *, waited: float, num_samples: int) -> None:
        """Add one step's time, the part of it spent waiting for data, and the samples it saw."""
        self._seconds += seconds
        self._waited += waited
        self._samples += num_samples

    def line(self, world: World) -> dict[str, float]:
        """Mean of every value over steps and processes, throughput of the whole world, and the share of waiting."""
        means = {name: self._sums[name] / self._counts[name] for name in sorted(self._sums)}
        values = world.mean(list(means.values()))
        seconds = max(self._seconds, 1e-9)
        return {
            **{name: round(value, 6) for name, value in zip(means, values, strict=True)},
            "samples_per_second": round(self._samples * world.size / seconds, 2),
            "waiting_for_data": round(self._waited / seconds, 4),
        }
