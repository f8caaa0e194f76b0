"""Stages: several runs, one after the other, inside one run directory; each starts from the previous one's weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from refcli.config.load import read_yaml, stages_of, validate
from refcli.config.schema import FinetuneSettings
from refcli.engine.checkpointing.resume import run_facts
from refcli.engine.checkpointing.run_dir import FREE_TO_CHANGE, RunDir, changed_keys
from refcli.errors import ConfigError
from refcli.grounder import Grounder
from refcli.recipes.training import Session, open_data
from refcli.recipes.validation import check_validation
from refcli.weights.layout import MODEL_FILE
from refcli.weights.locate import resolve
from refcli.weights.tokenizers import load_tokenizer

FOLDER = "stages"


@dataclass(frozen=True)
class Stage:
    """One run of a directory that may have several."""

    name: str
    """Empty if the run has no stages."""
    title: str
    """Its name for the user; empty if `name` is."""
    settings: FinetuneSettings
    path: Path
    """Its own run directory."""
    weights: Path
    """The folder of its weights."""
    after: Path | None
    """The weights of the previous stage, from which it starts."""
    resume: bool = False
    """Whether it continues from a checkpoint."""
    force: bool = False
    """Whether it first removes an earlier run in its directory."""

    @property
    def is_finished(self) -> bool:
        """Whether its weights have been written."""
        return (self.weights / MODEL_FILE).is_file()

    @property
    def has_begun(self) -> bool:
        """Whether there is a run to resume."""
        return (self.path / "run.yaml").is_file()


def plan_stages(settings: FinetuneSettings, out: Path) -> list[Stage]:
    """The stages of the settings, in order; a single one for the whole run if the settings have none.

    The weights of the last one are those of the run: `out/weights`.
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


def pending_stages(plan: Sequence[Stage], settings: FinetuneSettings, session: Session) -> list[Stage]:
    """Open the directory of the whole run; returns the stages that are still to run, with how each begins.

    The data and weights of every stage are checked before anything is removed, written or trained.

    Raises:
        RefcliError: data or weights of any stage are missing, the directory is occupied, or the settings of a finished
            stage have changed.
    """
    if not settings.stages:
        return [replace(plan[0], resume=session.resume, force=session.force)]

    def open_whole_run() -> None:
        for stage in plan:
            if session.resume and stage.is_finished and stage is not plan[-1]:
                _check_unchanged(stage)
            else:
                _check_inputs(stage, session, starts=not (session.resume and stage.has_begun))
        facts = run_facts(settings, store_path=session.store_path, processes=session.world.size)
        RunDir.open(session.out, settings, resume=session.resume, force=session.force, facts=facts)

    session.on_main(open_whole_run)
    done = session.world.gather([(stage.is_finished, stage.has_begun) for stage in plan])[0]  # as the main one sees it
    return [
        replace(stage, resume=session.resume and has_begun, force=session.resume and not has_begun)
        for stage, (is_finished, has_begun) in zip(plan, done, strict=True)
        if not (session.resume and is_finished and stage is not plan[-1])
    ]


def announce_stage(stage: Stage, session: Session) -> None:
    """Report the stage that begins, and warn if its frozen tower has random weights."""
    if stage.title:
        session.note([stage.title])
    train = stage.settings.train
    if not stage.resume and train.freeze_tower and stage.after is None and train.init_weights is None:
        session.note(["the frozen tower has random weights; name trained ones with --init (train.init_weights)"])


def _check_inputs(stage: Stage, session: Session, *, starts: bool) -> None:
    """Open the data of a stage and check its settings, since it may begin hours later.

    Raises:
        RefcliError: a split, the tokenizer or (if it starts) the initial weights are missing, or the settings fit no
            model.
    """
    settings = stage.settings
    data = open_data(settings, store_path=session.store_path, tokenizer=load_tokenizer(settings.model.text))
    check_validation(settings, data.validation)
    with torch.device("meta"):
        Grounder.from_settings(settings.model)
    if starts and stage.after is None and settings.train.init_weights is not None:
        resolve(settings.train.init_weights)


def _check_unchanged(stage: Stage) -> None:
    """Check that a finished stage was trained with these settings.

    Raises:
        ConfigError: it was not.
    """
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
