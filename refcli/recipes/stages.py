"""Stages: several runs in turn inside one run directory, each from the weights of the one before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from refcli.config.load import read_yaml, stages_of, validate
from refcli.config.schema import FinetuneSettings
from refcli.engine.checkpointing.run_dir import FREE_TO_CHANGE, RunDir, changed_keys
from refcli.engine.distributed.world import World
from refcli.engine.reporting.reporters import Reporter
from refcli.engine.stopping import failing_together
from refcli.errors import ConfigError
from refcli.grounder import Grounder
from refcli.recipes.data_record import run_facts
from refcli.recipes.restarts import takes_over
from refcli.recipes.training import open_data
from refcli.recipes.validation_gates import check_best_by
from refcli.weights.layout import MODEL_FILE
from refcli.weights.locate import resolve
from refcli.weights.tokenizers import load_tokenizer

FOLDER = "stages"


@dataclass(frozen=True)
class Stage:
    """One run of a directory that may have several."""

    name: str
    """Empty where the run has no stages."""
    title: str
    """How the user is told about it; empty as the name is."""
    settings: FinetuneSettings
    path: Path
    """Its own run directory."""
    weights: Path
    """Where its weights go."""
    after: Path | None
    """The weights of the stage before, which it starts from."""

    @property
    def is_finished(self) -> bool:
        """Whether its weights are written."""
        return (self.weights / MODEL_FILE).is_file()

    @property
    def has_begun(self) -> bool:
        """Whether there is a run to resume."""
        return (self.path / "run.yaml").is_file()


def plan_stages(settings: FinetuneSettings, out: Path) -> list[Stage]:
    """The stages of the settings, in turn; one that is the whole run where there are none.

    The last one's weights are those of the whole: `out/weights`.
    """
    stages = stages_of(settings)
    if not stages:
        return [Stage("", "", settings, out, out / "weights", None)]
    plan: list[Stage] = []
    for number, (name, own) in enumerate(stages.items(), start=1):
        path = out / FOLDER / f"{number}-{name}"
        weights = out / "weights" if number == len(stages) else path / "weights"
        title = f"stage {number} of {len(stages)}, {name}"
        plan.append(Stage(name, title, own, path, weights, plan[-1].weights if plan else None))
    return plan


def in_turn(
    plan: Sequence[Stage],
    settings: FinetuneSettings,
    *,
    out: Path,
    store_path: Path,
    world: World,
    resume: bool,
    force: bool,
    reporter: Reporter,
) -> Iterator[tuple[Stage, bool, bool]]:
    """The stages that are still to be run, each with whether to resume it and whether to remove what it left.

    Every process must take them all; what there is on the disk is as the main process sees it. What the stages read is
    looked at before anything is removed, written or trained.

    Raises:
        RefcliError: data or weights of any stage that are not there, of `RunDir.open` for the whole, or a finished
            stage whose settings have changed.
    """
    if not settings.stages:
        if world.is_main and not resume:
            _note_random_tower(plan[0], reporter)
        yield plan[0], resume, force
        return
    if world.any(takes_over(out)):
        resume, force = True, False
    with failing_together(world):
        if world.is_main:
            for stage in plan:
                if resume and stage.is_finished and stage is not plan[-1]:
                    _check_unchanged(stage)
                else:
                    _look_at(stage, store_path, starts=not (resume and stage.has_begun))
            facts = run_facts(settings, store_path=store_path, processes=world.size)
            RunDir.open(out, settings, resume=resume, force=force, facts=facts)
    for stage in plan:
        is_finished, has_begun = world.gather((stage.is_finished, stage.has_begun))[0]
        if resume and is_finished and stage is not plan[-1]:
            continue
        goes_on = resume and has_begun
        if world.is_main:
            reporter.noted(stage.title)
            if not goes_on:
                _note_random_tower(stage, reporter)
        yield stage, goes_on, resume and not has_begun


def _look_at(stage: Stage, store_path: Path, *, starts: bool) -> None:
    """Find what a stage reads and try its settings: it may be hours until its turn comes.

    Raises:
        RefcliError: a split, the tokenizer or (where it starts) the initial weights are not there, or the settings fit
            no model.
    """
    settings = stage.settings
    data = open_data(settings, store_path=store_path, tokenizer=load_tokenizer(settings.model.text))
    check_best_by(settings, data.watched)
    with torch.device("meta"):
        Grounder.from_settings(settings.model)
    if starts and stage.after is None and settings.train.init_weights is not None:
        resolve(settings.train.init_weights)


def _note_random_tower(stage: Stage, reporter: Reporter) -> None:
    train = stage.settings.train
    if train.freeze_tower and stage.after is None and train.init_weights is None:
        reporter.noted("the tower is frozen as it was drawn at random: --init (train.init_weights) gives it weights")


def _check_unchanged(stage: Stage) -> None:
    """Raises ConfigError where the settings are not those that a finished stage was trained with."""
    file = stage.path / "run.yaml"
    before = validate(FinetuneSettings, read_yaml(file), where=str(file))
    changed = changed_keys(before.model_dump(mode="json"), stage.settings.model_dump(mode="json"))
    too_late = [key for key in changed if key == "train.steps" or key not in FREE_TO_CHANGE]
    if too_late:
        raise ConfigError(
            f"{stage.title}, is finished and cannot change " + ", ".join(too_late),
            where=str(file),
            hint="start a new run",
        )
