"""What pre-training and fine-tuning share: data, processes, the run directory and the loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

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
from refcli.data.training.sampling import EndlessSampler, WeightedSampler
from refcli.engine.checkpointing.checkpoint import FILES
from refcli.engine.checkpointing.run_dir import RunDir
from refcli.engine.checkpointing.run_lock import lock_run_directory
from refcli.engine.checkpointing.state import EMA, MODEL
from refcli.engine.device import resolve_device
from refcli.engine.distributed.world import World, join_world
from refcli.engine.loading import check_shared_memory, explain_loading_errors, iterate_batches
from refcli.engine.loop import Feed, train
from refcli.engine.reporting.reporters import Logged, Reporter, Silence
from refcli.engine.reporting.tensorboard import TensorBoard
from refcli.engine.stopping import StopSignals, failing_together
from refcli.errors import ConfigError, DataError, ExpressionError
from refcli.inference.unread_text import UnreadText
from refcli.recipes.data_record import changed_data, run_facts
from refcli.recipes.preview import preview_lines
from refcli.recipes.restarts import takes_over
from refcli.recipes.run_checks import S, changed_schedule, slow_precision
from refcli.text.roles import RoleFinder
from refcli.text.tokenizer import Tokenizer

AnySettings = FinetuneSettings | PretrainSettings
FLOAT_BYTES = 4
MOST_IMAGES_LOOKED_FOR = 2000
"""Validation images; so many are found in seconds on any disk."""

MOST_READ = 2000
"""Training expressions that are looked at before the start."""


@dataclass(frozen=True)
class Data:
    """The splits of a run, opened."""

    training: GroundingDataset
    watched: GroundingDataset | None
    collate: Collate

    @property
    def num_watched(self) -> int:
        """Validation samples."""
        return len(self.watched) if self.watched else 0


@dataclass(frozen=True)
class Parts:
    """What a run is made of."""

    objective: nn.Module
    feed: Feed
    data: Data
    named: Mapping[str, nn.Module]
    """The parts of the objective, by what the user calls them."""
    notes: tuple[str, ...] = ()
    frozen: tuple[nn.Module, ...] = ()
    """Parts of the objective that do not learn."""
    compiled: tuple[nn.Module, ...] = ()
    """Parts of the objective to compile where that is asked for."""


@contextmanager
def training_world(device: str, out: Path) -> Iterator[World]:
    """The world of processes that trains into `out`, and nobody else meanwhile; it is left at the end.

    Raises:
        RefcliError: no such device, or another process is training into `out`.
    """
    world = join_world(device)
    try:
        with lock_run_directory(out, world):
            yield world
    finally:
        world.close()


def run_in_world(
    settings: AnySettings,
    world: World,
    *,
    store_path: Path,
    out: Path,
    resume: bool,
    force: bool,
    reporter: Reporter,
    build: Callable[[World, bool], Parts],
    save: Callable[[nn.Module], None],
) -> None:
    """Train and write the run directory `out`, in processes that have joined already.

    Args:
        build: makes the parts for this process; the flag says whether the run starts, so that initial weights are
            wanted (a resumed run has its own).
        save: writes what was trained, once, in the main process.

    Raises:
        RefcliError: settings, data or weights that do not fit; a loss that is not finite; a stop signal (all saved).
    """
    if settings.train.tensorboard:
        reporter = TensorBoard(out / "tensorboard", reporter)  # opened by the main process alone, when it starts
    run = RunDir(out)
    if world.any(takes_over(out)):
        resume, force = True, False
    with failing_together(world):
        if world.is_main and not resume:
            run.check_free(force=force)  # before anything costly is built
        if world.is_main:
            check_room_for_batches(settings, world)
    starts = world.gather(not resume or run.checkpoints.pointer("last") is None)[0]  # as the main process sees the disk
    parts = build(world, starts)
    notes = list(parts.notes)
    with failing_together(world):
        if world.is_main:
            notes += slow_precision(settings, world.device) if starts else changed_schedule(run, settings)
            notes += [] if starts else changed_data(out, settings, store_path)
            notes += missing_images(parts.data)
            facts = run_facts(settings, store_path=store_path, processes=world.size)
            RunDir.open(out, settings, resume=resume, force=force, facts=facts)
    listener: Reporter = Logged(run, reporter) if world.is_main else Silence()
    for note in notes:
        listener.noted(note)
    trained = train(
        parts.objective,
        parts.feed,
        optim=settings.optim,
        settings=settings.train,
        run=run,
        world=world,
        reporter=listener,
        frozen=parts.frozen,
        compiled=parts.compiled,
        static_graph=bool(getattr(parts.objective, "has_static_graph", False)),
    )
    with failing_together(world), explain_loading_errors():
        if world.is_main:
            if settings.train.keep == "best":
                listener.noted(f"the weights are those of step {take_best(run, trained, settings)}, the best")
            save(trained)


def take_best(run: RunDir, trained: nn.Module, settings: AnySettings) -> int:
    """Put the best checkpoint of a run into its trained model; returns the checkpoint's step.

    Raises:
        DataError: there is none, or it is damaged.
    """
    best = run.checkpoints.pointer("best")
    hint = "--resume --set train.keep=last takes the last weights"
    if best is None:
        raise DataError("the best checkpoint is gone", where=str(run.checkpoints.root), hint=hint)
    names = (MODEL,) if settings.train.ema_decay is None else (MODEL, EMA)  # what is averaged takes the other's place
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
    """Make sure that the batches which loading processes keep ready have room in shared memory.

    Raises:
        TrainingError: they have not.
    """
    height, width = settings.model.tower.image_size
    a_sample = (3 * FLOAT_BYTES + 1) * height * width  # the image, and its mask
    processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
    validates = bool(settings.data.validation)  # in the main process, while all of them hold on to their batches
    check_shared_memory(
        a_sample * settings.train.batch_size,
        workers=settings.data.workers,
        loaders=processes_here + validates,
    )


def missing_images(data: Data) -> list[str]:
    """What the user should know of validation images that are not there; the first validation would end the run."""
    missing = data.watched.missing_images(MOST_IMAGES_LOOKED_FOR) if data.watched else []
    if not missing:
        return []
    number = "an image" if len(missing) == 1 else f"{len(missing):,} images"
    return [f"warning: {number} of the validation cannot be found, e.g. {missing[0]}: the first validation will fail"]


def preview_training(settings: S, build: Callable[[S, World], Parts]) -> list[str]:
    """Lines that say what would be trained on what; nothing is written or trained.

    Raises:
        RefcliError: settings, data or weights that do not fit.
    """
    world: World = World(rank=0, size=1, device=resolve_device(settings.train.device))
    alone: S = settings.model_copy(update={"data": settings.data.model_copy(update={"workers": 0})})
    check_room_for_batches(settings, world)
    parts: Parts = build(alone, world)
    return [
        *parts.notes,
        *missing_images(parts.data),
        f"samples: {len(parts.data.training):,} for training, {parts.data.num_watched:,} for validation",
        *preview_lines(
            parts.objective, parts.feed, settings, parts=parts.named, frozen=parts.frozen, device=world.device
        ),
    ]


def open_data(
    settings: AnySettings, *, store_path: Path, tokenizer: Tokenizer, find_roles: RoleFinder | None = None
) -> Data:
    """Open the splits that the settings name.

    Raises:
        ConfigError: the tokenizer knows more ids than the tower embeds.
        DataError: no such store or split.
    """
    model, data = settings.model, settings.data
    if tokenizer.vocabulary_size > model.tower.vocabulary_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocabulary_size} ids, more than the tower embeds",
            where="model.tower.vocabulary_size",
            hint=f"set it to {tokenizer.vocabulary_size} or more",
        )
    store = _open_store(settings, store_path)
    training = _training_samples(settings, store)
    watched = None
    if data.validation:
        watched = GroundingDataset(
            store, data.validation, tower=model.tower, augment=None, limit=data.validation_samples
        )
    return Data(training, watched, Collate(tokenizer, find_roles=find_roles))


def open_training_data(settings: AnySettings, *, store_path: Path) -> GroundingDataset:
    """The training samples that the settings name.

    Raises:
        DataError: no such store or split.
    """
    return _training_samples(settings, _open_store(settings, store_path))


def _open_store(settings: AnySettings, path: Path) -> Store:
    store, data = Store(path), settings.data
    unknown = [name for name in (*data.train, *data.validation) if name not in store.names()]
    if unknown:
        raise DataError(
            f"the store has no split {unknown[0]!r}",
            where=f"data.{'train' if unknown[0] in data.train else 'validation'}",
            hint=f"--set data.train=NAME --set data.validation=NAME; known: {', '.join(store.names()) or 'none'}",
        )
    return store


def _training_samples(settings: AnySettings, store: Store) -> GroundingDataset:
    data = settings.data
    return GroundingDataset(store, data.train, tower=settings.model.tower, augment=data.augment, kinds=data.kinds)


def unread_text(data: Data, tokenizer: Tokenizer) -> tuple[str, ...]:
    """What the tokenizer cannot read of the first training expressions, as notes."""
    unread = UnreadText()
    for index in range(min(len(data.training), MOST_READ)):
        expression = data.training.example(index).expression
        with suppress(ExpressionError):
            reading = tokenizer.read(expression)
            unread.count(expression, reading.unknown_words, reading.unread_text)
    return tuple(f"training expressions: {note}" for note in unread.notes())


def make_feed(
    settings: AnySettings,
    data: Data,
    world: World,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    signals: StopSignals | None = None,
) -> Feed:
    """Endless training batches of this process, and how the model is watched.

    Args:
        signals: those by which `validate` ends early.
    """
    signals = signals or StopSignals()
    return Feed(partial(_train_batches, settings, data, world, signals), validate, signals)


def _train_batches(
    settings: AnySettings, data: Data, world: World, signals: StopSignals, start: int
) -> Generator[Batch, None, None]:
    place = {"rank": world.rank, "world": world.size, "start_step": start}
    size, seed = settings.train.batch_size, settings.train.seed
    order: EndlessSampler | WeightedSampler
    if settings.data.weights is None:
        order = EndlessSampler(len(data.training), batch_size=size, seed=seed, **place)
    else:
        weights = [settings.data.weights[name] for name in settings.data.train]
        order = WeightedSampler(data.training.sizes, weights, batch_size=size, seed=seed, **place)
    return iterate_batches(data.training, order, data.collate, workers=settings.data.workers, signals=signals)


def training_meta(settings: AnySettings) -> dict[str, object]:
    """What meta.json says about how weights were trained."""
    init = settings.train.init_weights
    return {
        "refcli": refcli.__version__,
        "trained_on": list(settings.data.train),
        "steps": settings.train.steps,
        "batch_size": settings.train.batch_size * settings.train.accumulate,
        "seed": settings.train.seed,
        "init_weights": None if init is None else "/".join(Path(init).parts[-2:]),  # whose, not where they lay
        "averaged": settings.train.ema_decay is not None,
    }
