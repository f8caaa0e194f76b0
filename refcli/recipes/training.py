"""Shared code of pre-training and fine-tuning: the session of processes, the data, the feed, one run of the loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

import refcli
from refcli.config.pretraining import PretrainSettings
from refcli.config.schema import FinetuneSettings
from refcli.contracts.batch import Batch
from refcli.data.store.read import Store
from refcli.data.training.collate import Collate
from refcli.data.training.dataset import GroundingDataset
from refcli.data.training.sampling import EndlessSampler, OnePass, WeightedSampler
from refcli.engine.checkpointing.checkpoint import FILES
from refcli.engine.checkpointing.resume import changed_data, changed_schedule, is_restarted_run, run_facts
from refcli.engine.checkpointing.run_dir import RunDir
from refcli.engine.checkpointing.run_lock import lock_run_directory
from refcli.engine.checkpointing.state import EMA, MODEL
from refcli.engine.context import TrainingContext
from refcli.engine.device import resolve_device
from refcli.engine.distributed.world import World, join_world
from refcli.engine.loading import check_shared_memory, explain_loading_errors, iterate_batches
from refcli.engine.loop import Feed, train
from refcli.engine.reporting.reporters import LoggingReporter, Reporter, SilentReporter
from refcli.engine.reporting.tensorboard import TensorBoard
from refcli.engine.stopping import StopSignals, failing_together
from refcli.errors import ConfigError, DataError, ExpressionError
from refcli.heads.table import head_class
from refcli.inference.unread_text import UnreadText
from refcli.recipes.precision import slow_precision
from refcli.text.roles import RoleFinder
from refcli.text.tokenizer import Tokenizer

AnySettings = FinetuneSettings | PretrainSettings
FLOAT_BYTES = 4
MAX_IMAGES_CHECKED = 2000
"""Maximum number of validation images that are checked before training, which takes seconds on any disk."""
MAX_EXPRESSIONS_CHECKED = 2000
"""Maximum number of training expressions that are tokenised before training, to find text that cannot be read."""


class Score(Protocol):
    """Computes the metrics of a model on validation batches, a "score" among them."""

    def __call__(self, model: nn.Module, batches: Iterable[Batch], /, *, bf16: bool) -> dict[str, float]:
        """Metrics by name."""


@dataclass(frozen=True)
class Session:
    """The processes of one training command, and its options."""

    world: World
    store_path: Path
    out: Path
    resume: bool
    force: bool
    reporter: Reporter

    @property
    def resumes(self) -> bool:
        """Whether the command resumes an existing run."""
        return self.resume and (self.out / "run.yaml").is_file()

    def on_main(self, action: Callable[[], None]) -> None:
        """Run an action in the main process only; if it fails, all processes fail."""
        with failing_together(self.world), explain_loading_errors():
            if self.world.is_main:
                action()

    def note(self, texts: Iterable[str]) -> None:
        """Report notes, once for all processes."""
        if self.world.is_main:
            for text in texts:
                self.reporter.noted(text)


@contextmanager
def training_session(
    settings: AnySettings, *, store_path: Path, out: Path, resume: bool, force: bool, reporter: Reporter
) -> Iterator[Session]:
    """Join the world of processes and lock `out` for it.

    A process that replaces a crashed one resumes its run.

    Raises:
        RefcliError: no such device, or another process is training into `out`.
    """
    world = join_world(settings.train.device)
    try:
        with lock_run_directory(out, world):
            if world.any(is_restarted_run(out)):
                resume, force = True, False
            yield Session(world, store_path, out, resume, force, reporter)
    finally:
        world.close()


def preview_session(settings: AnySettings, store_path: Path) -> Session:
    """A session of this process alone that writes nothing."""
    world = World(rank=0, size=1, device=resolve_device(settings.train.device))
    return Session(world, store_path, Path(), resume=False, force=False, reporter=SilentReporter())


@dataclass(frozen=True)
class Data:
    """The opened splits of a run."""

    training: GroundingDataset
    validation: GroundingDataset | None
    collate: Collate

    @property
    def num_validation(self) -> int:
        """Number of validation samples."""
        return len(self.validation) if self.validation else 0


@dataclass(frozen=True)
class TrainingParts:
    """The parts that training needs: an objective and its data."""

    objective: nn.Module
    feed: Feed
    data: Data
    named: Mapping[str, nn.Module]
    """Modules of the objective, by the names to show to the user."""
    notes: tuple[str, ...] = ()
    frozen: tuple[nn.Module, ...] = ()
    """Modules of the objective that do not learn."""
    compiled: tuple[nn.Module, ...] = ()
    """Modules of the objective to compile with `train.compile`."""


@dataclass(frozen=True)
class RunPlan:
    """One run of the loop: its settings, its directory, and how it begins."""

    settings: AnySettings
    run: RunDir
    resume: bool
    force: bool
    starts: bool
    """Whether it starts from initial weights; otherwise it has a checkpoint."""
    reporter: Reporter


def plan_run(session: Session, settings: AnySettings, path: Path, *, resume: bool, force: bool) -> RunPlan:
    """Check the run directory and the shared memory before anything costly is built.

    Raises:
        RefcliError: the directory is occupied, TensorBoard is not installed, or there is too little shared memory.
    """
    world, run, reporter = session.world, RunDir(path), session.reporter
    if settings.train.tensorboard:
        reporter = TensorBoard(path / "tensorboard", reporter)  # only the main process's opens, when training starts

    def check() -> None:
        if not resume:
            run.check_free(force=force)
        check_room_for_batches(settings, world)

    session.on_main(check)
    starts = world.gather(not resume or run.checkpoints.pointer("last") is None)[0]  # as the main process sees the disk
    reporter = LoggingReporter(run, reporter) if world.is_main else SilentReporter()
    return RunPlan(settings, run, resume, force, starts, reporter)


def train_run(session: Session, plan: RunPlan, parts: TrainingParts) -> nn.Module:
    """Open the run directory and train; returns the model with the weights to keep (`train.keep`).

    Raises:
        RefcliError: settings or data that differ from the run's own; a loss that is not finite; a stop signal (after
            saving).
    """
    world, settings, run = session.world, plan.settings, plan.run
    notes = list(parts.notes)

    def open_run() -> None:
        if plan.starts:
            notes.extend(slow_precision(settings, world.device))
        else:
            notes.extend(changed_schedule(run, settings))
            notes.extend(changed_data(run, settings, session.store_path))
        notes.extend(missing_images(parts.data))
        facts = run_facts(settings, store_path=session.store_path, processes=world.size)
        RunDir.open(run.path, settings, resume=plan.resume, force=plan.force, facts=facts)

    session.on_main(open_run)
    for note in notes:
        plan.reporter.noted(note)
    context = TrainingContext(settings.optim, settings.train, run, world, plan.reporter)
    trained = train(parts.objective, parts.feed, context, frozen=parts.frozen, compiled=parts.compiled)

    def load_best() -> None:
        step = load_best_checkpoint(run, trained, settings)
        plan.reporter.noted(f"kept the weights of step {step}, the best")

    if settings.train.keep == "best":
        session.on_main(load_best)
    return trained


def load_best_checkpoint(run: RunDir, trained: nn.Module, settings: AnySettings) -> int:
    """Load the best checkpoint of a run into its trained model; returns the checkpoint's step.

    Raises:
        DataError: there is none, or it is damaged.
    """
    best = run.checkpoints.pointer("best")
    hint = "--resume --set train.keep=last keeps the last weights"
    if best is None:
        raise DataError("the best checkpoint is gone", where=str(run.checkpoints.root), hint=hint)
    names = (MODEL,) if settings.train.ema_decay is None else (MODEL, EMA)  # averaged tensors replace the others
    state: dict[str, Tensor] = {}
    file = run.checkpoints.path(best.step)
    try:
        for name in names:
            file = run.checkpoints.path(best.step) / FILES[name]
            state |= load_file(file)
        trained.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DataError("the best checkpoint is damaged", where=str(file), hint=hint) from error
    return best.step


def check_room_for_batches(settings: AnySettings, world: World) -> None:
    """Check that shared memory has room for the batches that the loading processes keep ready.

    Raises:
        TrainingError: it is too small.
    """
    height, width = settings.model.tower.image_size
    sample_bytes = (3 * FLOAT_BYTES + 1) * height * width  # the image and its mask
    processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
    validates = bool(settings.data.validation)  # in the main process, while all processes keep their training batches
    check_shared_memory(
        sample_bytes * settings.train.batch_size,
        workers=settings.data.workers,
        loaders=processes_here + validates,
    )


def missing_images(data: Data) -> list[str]:
    """A warning about validation images that are missing: the first validation would end the run."""
    missing = data.validation.missing_images(MAX_IMAGES_CHECKED) if data.validation else []
    if not missing:
        return []
    number = "an image" if len(missing) == 1 else f"{len(missing):,} images"
    return [f"warning: {number} of the validation cannot be found, e.g. {missing[0]}: the first validation will fail"]


def open_data(
    settings: AnySettings, *, store_path: Path, tokenizer: Tokenizer, find_roles: RoleFinder | None = None
) -> Data:
    """Open the splits that the settings name.

    Raises:
        ConfigError: the tokenizer has more ids than the tower embeds.
        DataError: no such store or split.
    """
    model, data = settings.model, settings.data
    if tokenizer.vocabulary_size > model.tower.vocabulary_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocabulary_size} ids, more than the tower embeds",
            where="model.tower.vocabulary_size",
            hint=f"set it to {tokenizer.vocabulary_size} or more",
        )
    store = Store(store_path)
    unknown = [name for name in (*data.train, *data.validation) if name not in store.names()]
    if unknown:
        raise DataError(
            f"the store has no split {unknown[0]!r}",
            where=f"data.{'train' if unknown[0] in data.train else 'validation'}",
            hint=f"--set data.train=NAME --set data.validation=NAME; known: {', '.join(store.names()) or 'none'}",
        )
    with_regions = head_class(model.head.name).reads_regions
    training = GroundingDataset(
        store,
        data.train,
        tower=model.tower,
        augment=data.augment,
        kinds=data.kinds,
        with_regions=with_regions,
    )
    validation = None
    if data.validation:
        validation = GroundingDataset(
            store,
            data.validation,
            tower=model.tower,
            augment=None,
            limit=data.validation_samples,
            with_regions=with_regions,
        )
    return Data(training, validation, Collate(tokenizer, find_roles=find_roles))


def unread_text(data: Data, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Notes about text in the first training expressions that the tokenizer cannot read."""
    unread = UnreadText()
    for index in range(min(len(data.training), MAX_EXPRESSIONS_CHECKED)):
        expression = data.training.example(index).expression
        with suppress(ExpressionError):
            reading = tokenizer.read(expression)
            unread.count(expression, reading.unknown_words, reading.unread_text)
    return tuple(f"training expressions: {note}" for note in unread.notes())


def make_feed(settings: AnySettings, data: Data, world: World, *, score: Score) -> Feed:
    """The training batches of this process, and a validation by `score` if there are validation samples."""
    signals = StopSignals()
    validate = partial(_validate, settings, data, signals, score) if data.validation else None
    return Feed(partial(training_batches, settings, data, world, signals), validate, signals)


def training_batches(
    settings: AnySettings, data: Data, world: World, signals: StopSignals, start: int
) -> Generator[Batch, None, None]:
    """Endless batches of one process of `world`, from its batch number `start` on."""
    place = {"rank": world.rank, "world": world.size, "start_step": start}
    size, seed = settings.train.batch_size, settings.train.seed
    order: EndlessSampler | WeightedSampler
    if settings.data.weights is None:
        order = EndlessSampler(len(data.training), batch_size=size, seed=seed, **place)
    else:
        weights = [settings.data.weights[name] for name in settings.data.train]
        order = WeightedSampler(data.training.sizes, weights, batch_size=size, seed=seed, **place)
    return iterate_batches(data.training, order, data.collate, workers=settings.data.workers, signals=signals)


def validation_batches(
    settings: AnySettings, data: Data, signals: StopSignals | None = None
) -> Generator[Batch, None, None]:
    """Every validation sample once."""
    assert data.validation is not None
    order = OnePass(len(data.validation), batch_size=settings.train.batch_size)
    return iterate_batches(data.validation, order, data.collate, workers=settings.data.workers, signals=signals)


def _validate(
    settings: AnySettings, data: Data, signals: StopSignals, score: Score, model: nn.Module
) -> dict[str, float]:
    with closing(validation_batches(settings, data, signals)) as batches:
        return score(model, signals.interruptible(batches), bf16=settings.train.precision == "bf16")


def training_meta(settings: AnySettings) -> dict[str, object]:
    """How weights were trained, for meta.json."""
    init = settings.train.init_weights
    return {
        "refcli": refcli.__version__,
        "trained_on": list(settings.data.train),
        "steps": settings.train.steps,
        "batch_size": settings.train.batch_size * settings.train.accumulate,
        "seed": settings.train.seed,
        "init_weights": None if init is None else "/".join(Path(init).parts[-2:]),  # not where they were on this disk
        "averaged": settings.train.ema_decay is not None,
    }
