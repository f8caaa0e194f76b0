"""Means over the steps since the last line of metrics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from refcli.engine.distributed.world import World
from refcli.model.flops import Work


class Averages:
    """Collects loss terms, gradient norms, times and work until a line of metrics is due."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._samples = 0
        self._seconds = 0.0
        self._waited = 0.0
        self._work = Work()

    def add(self, values: Mapping[str, float]) -> None:
        """Add one observation of each named value; a term may be absent from some steps."""
        for name, value in values.items():
            self._sums[name] += value
            self._counts[name] += 1

    def add_time(self, seconds: float, *, waited: float, num_samples: int, work: Work | None = None) -> None:
        """Add one step's time, the part of it spent waiting for data, the samples it saw and what they took."""
        self._seconds += seconds
        self._waited += waited
        self._samples += num_samples
        self._work += work or Work()

    @property
    def flops_per_second(self) -> float:
        """Model FLOP/s of this process, waiting for data included."""
        return self._work.flops / max(self._seconds, 1e-9)

    def line(self, world: World, *, gemm_peak: float | None = None) -> dict[str, float]:
        """Mean of every value over steps and processes, throughput of the whole world, and the share of waiting.

        Args:
            gemm_peak: FLOP/s of this process's device (see `engine.utilisation`), for an objective that knows what its
                batches take. The line then has `tokens_per_second` and `flops_utilisation`: model FLOPs by the FLOPs
                that the device could have done in the same time, waiting for data included.
        """
        means = {name: self._sums[name] / self._counts[name] for name in sorted(self._sums)}
        seconds = max(self._seconds, 1e-9)
        rates: dict[str, float] = {}
        if gemm_peak is not None:
            rates["tokens_per_second"] = self._work.num_tokens / seconds
            rates["flops_utilisation"] = self.flops_per_second / gemm_peak
        values = world.mean([*means.values(), *rates.values()])
        rates = dict(zip(rates, values[len(means) :], strict=True))
        line = {name: round(value, 6) for name, value in zip(means, values, strict=False)}
        line["samples_per_second"] = round(self._samples * world.size / seconds, 2)
        if rates:
            line["tokens_per_second"] = round(rates["tokens_per_second"] * world.size, 1)
            line["flops_utilisation"] = round(rates["flops_utilisation"], 4)
        line["waiting_for_data"] = round(self._waited / seconds, 4)
        return line
