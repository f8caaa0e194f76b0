"""The lines of metrics.jsonl: means over the steps since the last line, and rates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from refcli.engine.checkpointing.state import TrainingState
from refcli.engine.context import TrainingContext
from refcli.engine.distributed.world import World
from refcli.engine.measuring.utilisation import gemm_peak
from refcli.engine.objective import HasWork, read_metrics
from refcli.engine.optimisation.step import StepResult
from refcli.engine.stopping import failing_together
from refcli.model.flops import Work


class MetricAverages:
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
        """Add one step: its time, the part of it spent waiting for data, its samples and their work."""
        self._seconds += seconds
        self._waited += waited
        self._samples += num_samples
        self._work += work or Work()

    @property
    def flops_per_second(self) -> float:
        """Model FLOP/s of this process, waiting for data included."""
        return self._work.flops / max(self._seconds, 1e-9)

    def line(self, world: World, *, gemm_peak: float | None = None) -> dict[str, float]:
        """The mean of every value over steps and processes, the throughput of the world, and the share of time waiting.

        Args:
            gemm_peak: FLOP/s of this process's device (see `engine.measuring.utilisation`), if the objective knows the
                work of its batches. The line then has `tokens_per_second` and `flops_utilisation`: model FLOPs divided
                by the FLOPs that the device could have done in the same time, waiting for data included.
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


class MetricsLog:
    """Writes the training lines of metrics.jsonl. Every process must call every method; the main one writes."""

    def __init__(self, context: TrainingContext) -> None:
        self.context = context
        self._averages = MetricAverages()
        self._peak: float | None = None

    def add(self, result: StepResult, seconds: float) -> None:
        """Count one optimiser step."""
        self._averages.add(result.values)
        self._averages.add_time(seconds, waited=result.waited, num_samples=result.num_samples, work=result.work)

    def write(self, state: TrainingState, *, lr: float) -> None:
        """Write one line: the means over the steps since the last one.

        Raises:
            TrainingError: it cannot be written.
        """
        world, precision = self.context.world, self.context.train.precision
        self._averages.add(read_metrics(state.objective))
        if isinstance(state.objective, HasWork):
            assert precision != "auto"
            known = self._peak or gemm_peak(world.device, precision)
            self._peak = max(known, self._averages.flops_per_second)  # other programs may have slowed the measurement
        means = self._averages.line(world, gemm_peak=self._peak)
        line = {"step": state.step, **means, "lr": lr, "seconds": round(state.seconds, 3)}
        self._averages = MetricAverages()
        with failing_together(world):
            if world.is_main:
                self.context.run.append_metrics(line)
        self.context.reporter.measured(line)
