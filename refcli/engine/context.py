"""The context that all parts of a training run share."""

from __future__ import annotations

from dataclasses import dataclass

from refcli.config.schema import OptimSettings, TrainSettings
from refcli.engine.checkpointing.run_dir import RunDir
from refcli.engine.distributed.world import World
from refcli.engine.reporting.reporters import Reporter


@dataclass(frozen=True)
class TrainingContext:
    """The settings of a run, its directory, its processes and its progress reporter."""

    optim: OptimSettings
    train: TrainSettings
    """Its `precision` is no longer "auto"."""
    run: RunDir
    world: World
    reporter: Reporter
