"""Fine-tune a grounder on a store: data, model, feed, loop, weights; in stages if the settings have some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

from torch import nn

from refcli.config.schema import FinetuneSettings
from refcli.contracts.batch import Batch
from refcli.engine.checkpointing.state import seed_generators
from refcli.engine.distributed.world import World
from refcli.engine.reporting.reporters import Reporter
from refcli.engine.validation import SCORE
from refcli.errors import ConfigError
from refcli.evaluation.calibration import with_score_threshold, with_threshold
from refcli.evaluation.validation import validate
from refcli.grounder import Grounder
from refcli.heads.instances.head import InstancesHead
from refcli.heads.table import with_head_defaults
from refcli.recipes.outputs import check_predicts_regions, resolve_outputs
from refcli.recipes.precision import resolve_precision
from refcli.recipes.preview import preview_training
from refcli.recipes.stages import Stage, announce_stage, pending_stages, plan_stages
from refcli.recipes.training import (
    Data,
    Session,
    TrainingParts,
    check_room_for_batches,
    make_feed,
    open_data,
    plan_run,
    preview_session,
    train_run,
    training_meta,
    training_session,
    unread_text,
)
from refcli.recipes.validation import calibrate, calibrate_score, check_floors, check_validation, require_metric
from refcli.weights.directory import save_weights
from refcli.weights.tokenizers import load_tokenizer
from refcli.weights.transfer import start_from, start_head_from


def finetune(
    settings: FinetuneSettings,
    *,
    store_path: Path,
    out: Path,
    resume: bool = False,
    force: bool = False,
    reporter: Reporter,
    floors: Mapping[str, float] | None = None,
) -> Path:
    """Train and write the run directory `out`; returns its weights directory.

    The weights are those of the last or of the best checkpoint (`train.keep`), averaged if `train.ema_decay` is set.
    With `stages`, each stage is a run in `out/stages/<number>-<name>`, and the weights of the last one are in `out`.

    Args:
        floors: minimum values of validation metrics of those weights.

    Raises:
        RefcliError: settings, data or weights that do not fit; a loss that is not finite; a stop signal (after saving).
        GateError: a metric is below its floor; all files are written.
    """
    settings = settings.model_copy(update={"model": with_head_defaults(settings.model)})
    if floors and not settings.data.validation:
        raise ConfigError("--fail-under needs validation splits", where="data.validation")
    plan_stages(settings, out)  # a mistake in the stages is found before this process joins others
    with training_session(
        settings, store_path=store_path, out=out, resume=resume, force=force, reporter=reporter
    ) as session:
        resumed = out / "run.yaml" if session.resumes else None
        settings, notes = resolve_precision(settings, session.world, resumed=resumed)
        session.note(notes)
        settings, output_notes = resolve_outputs(settings, session)
        stages = plan_stages(settings, out)
        for stage in pending_stages(stages, settings, session):
            announce_stage(stage, session)
            _train_stage(stage, stages, session, output_notes)
    if session.world.is_main:
        check_floors(stages[-1].path, keep=stages[-1].settings.train.keep, floors=floors or {})
    return out / "weights"


def _train_stage(stage: Stage, stages: list[Stage], session: Session, notes: tuple[str, ...]) -> None:
    """One run. Its model must be released before the session ends, so no caller may hold it."""
    settings = stage.settings
    plan = plan_run(session, settings, stage.path, resume=stage.resume, force=stage.force)
    parts = build(settings, session.store_path, session.world, plan.starts, after=stage.after, notes=notes)
    trained = train_run(session, plan, parts)
    session.on_main(partial(_save, trained, parts.data, stage, stages, plan.reporter))


def preview(settings: FinetuneSettings, *, store_path: Path) -> list[str]:
    """Describe the run that `finetune` would start, stage by stage, in lines; nothing is written or trained.

    Raises:
        RefcliError: see `finetune`.
    """
    session = preview_session(settings, store_path)
    settings, lines = resolve_precision(settings, session.world)
    settings, notes = resolve_outputs(settings, session)
    for stage in plan_stages(settings, Path()):
        is_later = stage.after is not None
        lines += [f"{stage.title}:"] if stage.title else []
        lines += ["starts from the weights of the previous stage"] if is_later else []
        check_room_for_batches(stage.settings, session.world)
        data = stage.settings.data.model_copy(update={"workers": 0})
        loading_here = stage.settings.model_copy(update={"data": data})
        parts = build(loading_here, store_path, session.world, notes=() if is_later else notes)
        lines += preview_training(parts, stage.settings, session.world.device)
    return lines


def build(
    settings: FinetuneSettings,
    store_path: Path,
    world: World,
    starts: bool = True,
    *,
    after: Path | None = None,
    notes: tuple[str, ...] = (),
) -> TrainingParts:
    """Open the data and make the model; nothing is written.

    Args:
        starts: read `train.init_weights` and `train.init_head`; a resumed run has its own weights.
        after: the weights of the previous stage, in place of `train.init_weights`.
        notes: earlier notes for the user.

    Raises:
        RefcliError: settings, data or weights that do not fit.
    """
    tokenizer = load_tokenizer(settings.model.text)
    data = open_data(settings, store_path=store_path, tokenizer=tokenizer)
    check_predicts_regions(settings.model.head)
    check_validation(settings, data.validation)

    seed_generators(settings.train.seed)
    grounder = Grounder.from_settings(settings.model)
    if starts:
        notes += unread_text(data, tokenizer)
        origin = settings.train.init_weights if after is None else str(after)
        notes += start_from(origin, grounder, settings.model) if origin else ()
        head = settings.train.init_head
        notes += start_head_from(head, grounder, settings.model) if head else ()

    feed = make_feed(settings, data, world, score=partial(_score, best_by=settings.train.best_by))
    return TrainingParts(
        grounder,
        feed,
        data,
        {"tower": grounder.tower, f"head {settings.model.head.name}": grounder.head},
        notes=notes if starts else (),
        frozen=(grounder.tower,) if settings.train.freeze_tower else (),
        compiled=(grounder.tower, grounder.head),
    )


def _score(model: nn.Module, batches: Iterable[Batch], *, bf16: bool, best_by: str) -> dict[str, float]:
    """The metrics of a model; `score` is the one that chooses the best checkpoint."""
    assert isinstance(model, Grounder)
    metrics = validate(model, batches, bf16=bf16)
    require_metric(best_by, list(metrics))
    return {**metrics, SCORE: metrics[best_by]}


def _save(trained: nn.Module, data: Data, stage: Stage, stages: list[Stage], reporter: Reporter) -> None:
    assert isinstance(trained, Grounder)
    model = stage.settings.model
    meta = training_meta(stage.settings) | {"kept": stage.settings.train.keep}
    init_head = stages[0].settings.train.init_head
    meta |= {"init_head": Path(init_head).name} if init_head else {}
    if stage.name:
        meta |= {"stage": stage.name, "steps_of_stages": {one.name: one.settings.train.steps for one in stages}}
        meta |= {"init_weights": training_meta(stages[0].settings)["init_weights"]}
    if stage.settings.train.existence_min_t_acc is not None and stage.name == stages[-1].name:
        chosen = calibrate(trained, stage.settings, data)
        model = with_threshold(model, chosen.threshold)
        meta["existence_threshold_from"] = {"splits": list(stage.settings.data.validation), **asdict(chosen)}
        reporter.noted(
            f"existence_threshold {chosen.threshold:.4f}: on the validation samples T-acc {chosen.t_acc:.4f}, "
            f"N-acc {chosen.n_acc:.4f}"
        )
    head = trained.head
    is_last = stage.name == stages[-1].name
    if isinstance(head, InstancesHead) and is_last and stage.settings.train.calibrate_scores and data.validation:
        existence_threshold = float(model.head.settings.get("existence_threshold", head.config.existence_threshold))
        scores = calibrate_score(trained, stage.settings, data, existence_threshold=existence_threshold)
        model = with_score_threshold(model, head.score_threshold_of(scores.threshold))
        meta["score_threshold_from"] = {
            "splits": list(stage.settings.data.validation),
            "exact_sets": scores.exact_sets,
        }
        reporter.noted(
            f"score_threshold {model.head.settings['score_threshold']:.4f}: exactly the right boxes for "
            f"{scores.exact_sets:.4f} of the validation samples"
        )
    save_weights(stage.weights, trained, model, meta=meta)
