"""Fine-tune a grounder on a store: settings -> data -> model -> loop -> weights, in stages where there are some."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path

from torch import nn

from refcli.config.schema import FinetuneSettings, HeadChoice
from refcli.contracts.batch import Batch
from refcli.data.training.sampling import OnePass
from refcli.engine.checkpointing.run_dir import RunDir
from refcli.engine.checkpointing.state import seed_generators
from refcli.engine.device import resolve_device
from refcli.engine.distributed.world import World
from refcli.engine.loading import iterate_batches
from refcli.engine.reporting.reporters import Logged, Reporter
from refcli.engine.reporting.watching import SCORE
from refcli.engine.stopping import StopSignals
from refcli.errors import ConfigError
from refcli.evaluation.calibration import Calibrated, calibrate_on, with_threshold
from refcli.evaluation.validation import validate
from refcli.grounder import Grounder
from refcli.heads.table import head_settings, with_whole_head
from refcli.recipes.outputs import check_calibration, settle_outputs
from refcli.recipes.run_checks import settle_precision, settled_for_preview
from refcli.recipes.stages import Stage, in_turn, plan_stages
from refcli.recipes.training import (
    Data,
    Parts,
    make_feed,
    open_data,
    preview_training,
    run_in_world,
    training_meta,
    training_world,
    unread_text,
)
from refcli.recipes.validation_gates import check_best_by, check_validation
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

    The weights are those of the last or of the best checkpoint (`train.keep`): the averaged ones if `train.ema_decay`
    is set. With `stages`, each is a run in `out/stages/<number>-<name>`, and the last one's weights are in `out`.

    Args:
        floors: least values of validation metrics of those weights.

    Raises:
        RefcliError: settings, data or weights that do not fit; a loss that is not finite; a stop signal (all saved).
        GateError: a floor is not reached; everything is written nevertheless.
    """
    settings = settings.model_copy(update={"model": with_whole_head(settings.model)})
    if floors and not settings.data.validation:
        raise ConfigError("without validation nothing can be held to --fail-under", where="data.validation")
    plan_stages(settings, out)  # a mistake in them is found before other processes are met
    with training_world(settings.train.device, out) as world:
        settings = settle_precision(settings, world, out, resume=resume, reporter=reporter)
        settings, notes = settle_outputs(settings, world, store_path=store_path, out=out, resume=resume)
        plan = plan_stages(settings, out)
        for stage, goes_on, starts_over in in_turn(
            plan, settings, out=out, store_path=store_path, world=world, resume=resume, force=force, reporter=reporter
        ):
            run_in_world(
                stage.settings,
                world,
                store_path=store_path,
                out=stage.path,
                resume=goes_on,
                force=starts_over,
                reporter=reporter,
                build=partial(build, stage.settings, store_path, after=stage.after, notes=notes),
                save=partial(_save, stage, plan, store_path, reporter),
            )
    if world.is_main:
        check_validation(plan[-1].path, keep=plan[-1].settings.train.keep, floors=floors or {})
    return out / "weights"


def preview(settings: FinetuneSettings, *, store_path: Path) -> list[str]:
    """Lines that say what `finetune` would train on what, stage by stage.

    Raises:
        RefcliError: as `finetune`, as far as nothing is written or trained.
    """
    settings, lines = settled_for_preview(settings)
    alone = World(rank=0, size=1, device=resolve_device(settings.train.device))
    settings, notes = settle_outputs(settings, alone, store_path=store_path, out=None, resume=False)
    plan = plan_stages(settings, Path())
    for stage in plan:
        is_later = stage.after is not None
        lines += [f"{stage.title}:"] if stage.title else []
        lines += ["starts from the weights of the stage before"] if is_later else []
        make = partial(_build_for_preview, store_path=store_path, notes=() if is_later else notes)
        lines += preview_training(stage.settings, make)
    return lines


def _build_for_preview(settings: FinetuneSettings, world: World, *, store_path: Path, notes: tuple[str, ...]) -> Parts:
    return build(settings, store_path, world, notes=notes)


def build(
    settings: FinetuneSettings,
    store_path: Path,
    world: World,
    starts: bool = True,
    *,
    after: Path | None = None,
    notes: tuple[str, ...] = (),
) -> Parts:
    """Open the data and make the model; nothing is written.

    Args:
        starts: read `train.init_weights` and `train.init_head`; a resumed run has weights of its own.
        after: the weights of the stage before, in place of `train.init_weights`.
        notes: what the user should know already.

    Raises:
        RefcliError: settings, data or weights that do not fit.
    """
    tokenizer = load_tokenizer(settings.model.text)
    data = open_data(settings, store_path=store_path, tokenizer=tokenizer)
    _check_answers(settings.model.head)
    check_best_by(settings, data.watched)
    if settings.train.existence_min_t_acc is not None:
        check_calibration(settings, data)
    seed_generators(settings.train.seed)
    grounder = Grounder.from_settings(settings.model)
    if starts:
        notes += unread_text(data, tokenizer)
        origin = settings.train.init_weights if after is None else str(after)
        notes += start_from(origin, grounder, settings.model) if origin else ()
        head = settings.train.init_head
        notes += start_head_from(head, grounder, settings.model) if head else ()
    signals = StopSignals()
    validator = _validator(data, settings, signals) if data.watched else None
    return Parts(
        grounder,
        make_feed(settings, data, world, validator, signals),
        data,
        {"tower": grounder.tower, f"head {settings.model.head.name}": grounder.head},
        notes=notes if starts else (),
        frozen=(grounder.tower,) if settings.train.freeze_tower else (),
        compiled=(grounder.tower, grounder.head),
    )


def _save(stage: Stage, plan: list[Stage], store_path: Path, reporter: Reporter, trained: nn.Module) -> None:
    assert isinstance(trained, Grounder)
    model = stage.settings.model
    meta = training_meta(stage.settings) | {"kept": stage.settings.train.keep}
    head = plan[0].settings.train.init_head
    meta |= {"init_head": Path(head).name} if head else {}
    if stage.name:
        meta |= {"stage": stage.name, "steps_of_stages": {one.name: one.settings.train.steps for one in plan}}
        meta |= {"init_weights": training_meta(plan[0].settings)["init_weights"]}
    if stage.settings.train.existence_min_t_acc is not None and stage is plan[-1]:
        chosen = _calibrate(trained, stage.settings, store_path)
        model = with_threshold(model, chosen.threshold)
        meta["existence_threshold_from"] = {"splits": list(stage.settings.data.validation), **asdict(chosen)}
        Logged(RunDir(stage.path), reporter).noted(
            f"existence_threshold {chosen.threshold:.4f}: on the validation samples T-acc {chosen.t_acc:.4f}, "
            f"N-acc {chosen.n_acc:.4f}"
        )
    save_weights(stage.weights, trained, model, meta=meta)


def _calibrate(trained: Grounder, settings: FinetuneSettings, store_path: Path) -> Calibrated:
    """Choose the existence threshold of a trained model on the validation samples."""
    least = settings.train.existence_min_t_acc
    data = open_data(settings, store_path=store_path, tokenizer=load_tokenizer(settings.model.text))
    assert data.watched is not None
    assert least is not None
    with closing(_one_pass(data, settings)) as batches:
        return calibrate_on(trained, batches, min_t_acc=least, bf16=settings.train.precision == "bf16")


def _check_answers(head: HeadChoice) -> None:
    """Raises ConfigError where a head would learn neither boxes nor masks: it could never say where something is."""
    config = head_settings(head)
    if not (getattr(config, "rec", True) or getattr(config, "res", True)):
        raise ConfigError(
            "the head predicts neither boxes nor masks", where="model.head.settings", hint="set rec=true or res=true"
        )


def _one_pass(
    data: Data, settings: FinetuneSettings, signals: StopSignals | None = None
) -> Generator[Batch, None, None]:
    """Every validation sample once."""
    assert data.watched is not None
    order = OnePass(len(data.watched), batch_size=settings.train.batch_size)
    return iterate_batches(data.watched, order, data.collate, workers=settings.data.workers, signals=signals)


def _validator(data: Data, settings: FinetuneSettings, signals: StopSignals) -> Callable[[nn.Module], dict[str, float]]:
    """Scores a model; `score` is the metric that chooses the best checkpoint."""
    best_by = settings.train.best_by

    def run(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, Grounder)
        with closing(_one_pass(data, settings, signals)) as batches:
            metrics = validate(model, signals.interruptible(batches), bf16=settings.train.precision == "bf16")
        if best_by not in metrics:
            raise ConfigError(
                f"the validation does not measure {best_by}, which is to choose the best checkpoint",
                where="train.best_by",
                hint="this head and these splits have: " + ", ".join(metrics),
            )
        return {**metrics, SCORE: metrics[best_by]}

    return run
