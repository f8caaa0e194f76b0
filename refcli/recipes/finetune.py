"""Fine-tune a grounder on a store: settings -> data -> model -> loop -> weights."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

import refcli
from refcli.config.schema import FinetuneSettings
from refcli.contracts.batch import Batch
from refcli.data.collate import Collate
from refcli.data.dataset import GroundingDataset
from refcli.data.sampling import EndlessSampler, OnePass
from refcli.data.store import Store
from refcli.engine.distributed import World, join_world, resolve_device
from refcli.engine.loading import iterate_batches
from refcli.engine.loop import Feed, train
from refcli.engine.randomness import seed_generators
from refcli.engine.reporting import Logged, Reporter, Silence
from refcli.engine.run_dir import RunDir
from refcli.errors import ConfigError
from refcli.evaluation.model_frame import validate
from refcli.grounder import Grounder
from refcli.text.tokenizer import Tokenizer
from refcli.weights.load import save_weights
from refcli.weights.transfer import start_from


@dataclass(frozen=True)
class Parts:
    """What a run is made of."""

    grounder: Grounder
    feed: Feed
    num_train: int
    num_validation: int
    notes: tuple[str, ...]


def finetune(
    settings: FinetuneSettings,
    *,
    store_path: Path,
    out: Path,
    resume: bool = False,
    force: bool = False,
    reporter: Reporter,
) -> Path:
    """Train and write the run directory `out`; returns its weights directory.

    The weights are those after the last step: the averaged ones if `train.ema_decay` is set.

    Raises:
        RefcliError: settings, data or weights that do not fit; a loss that is not finite; a stop signal (all saved).
    """
    world = join_world(settings.train.device)
    try:
        continues = resume and RunDir(out).checkpoints.pointer("last") is not None
        parts = build(settings, store_path=store_path, world=world, with_init_weights=not continues)
        if world.is_main:
            RunDir.open(out, settings, resume=resume, force=force, facts={"store": str(store_path.resolve())})
        world.wait()
        run = RunDir(out)
        listener: Reporter = Logged(run, reporter) if world.is_main else Silence()
        for note in parts.notes:
            listener.noted(note)
        trained = train(
            parts.grounder,
            parts.feed,
            optim=settings.optim,
            settings=settings.train,
            run=run,
            world=world,
            reporter=listener,
            frozen=[parts.grounder.tower] if settings.train.freeze_tower else [],
            compiled=[parts.grounder.tower, parts.grounder.head],
        )
        if world.is_main:
            assert isinstance(trained, Grounder)
            save_weights(out / "weights", trained, settings.model, meta=_meta(settings))
        world.wait()
    finally:
        world.close()
    return out / "weights"


def preview(settings: FinetuneSettings, *, store_path: Path) -> list[str]:
    """Lines that say what `finetune` would train on what: parameter counts and the shapes of the first batch.

    Raises:
        RefcliError: as `finetune`, as far as nothing is written or trained.
    """
    world = World(rank=0, size=1, device=resolve_device(settings.train.device))
    parts = build(settings, store_path=store_path, world=world)
    with closing(parts.feed.batches(0)) as batches:
        batch = next(batches)
    head = settings.model.head.name
    return [
        *parts.notes,
        f"tower: {_num_parameters(parts.grounder.tower):,} parameters"
        + (" (frozen)" if settings.train.freeze_tower else ""),
        f"head {head}: {_num_parameters(parts.grounder.head):,} parameters",
        f"samples: {parts.num_train:,} for training, {parts.num_validation:,} for validation",
        f"first batch: images {tuple(batch.images.shape)}, token_ids {tuple(batch.token_ids.shape)}, "
        f"masks {tuple(batch.targets.masks.shape)}, {int(batch.targets.exists.sum())} with a referent",
        f"device: {world.device}",
    ]


def build(settings: FinetuneSettings, *, store_path: Path, world: World, with_init_weights: bool = True) -> Parts:
    """Open the data and make the model; nothing is written.

    Args:
        with_init_weights: read `train.init_weights`; a resumed run has its own weights and does not need them.

    Raises:
        RefcliError: settings, data or weights that do not fit.
    """
    tokenizer = Tokenizer.load(settings.model.text)
    if tokenizer.vocabulary_size > settings.model.tower.vocabulary_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocabulary_size} ids, more than the tower embeds",
            where="model.tower.vocabulary_size",
            hint=f"set it to {tokenizer.vocabulary_size} or more",
        )
    store = Store(store_path)
    training = GroundingDataset(
        store,
        settings.data.train,
        tower=settings.model.tower,
        augment=settings.data.augment,
        kinds=settings.data.kinds,
    )
    watched = None
    if settings.data.validation:
        watched = GroundingDataset(
            store,
            settings.data.validation,
            tower=settings.model.tower,
            augment=None,
            limit=settings.data.validation_samples,
        )
    seed_generators(settings.train.seed)
    grounder = Grounder.from_settings(settings.model)
    origin = settings.train.init_weights if with_init_weights else None
    notes = start_from(origin, grounder, settings.model) if origin else ()
    collate = Collate(tokenizer)
    feed = Feed(
        batches=partial(_train_batches, training, collate, settings, world),
        validate=_validator(watched, collate, settings) if watched else None,
    )
    return Parts(grounder, feed, len(training), len(watched) if watched else 0, notes)


def _train_batches(
    dataset: GroundingDataset, collate: Collate, settings: FinetuneSettings, world: World, start: int
) -> Generator[Batch, None, None]:
    sampler = EndlessSampler(
        len(dataset),
        batch_size=settings.train.batch_size,
        seed=settings.train.seed,
        rank=world.rank,
        world=world.size,
        start_step=start,
    )
    return iterate_batches(dataset, sampler, collate, workers=settings.data.workers)


def _validator(
    dataset: GroundingDataset, collate: Collate, settings: FinetuneSettings
) -> Callable[[nn.Module], dict[str, float]]:
    def run(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, Grounder)
        order = OnePass(len(dataset), batch_size=settings.train.batch_size)
        with closing(iterate_batches(dataset, order, collate, workers=settings.data.workers)) as batches:
            return validate(model, batches, bf16=settings.train.precision == "bf16")

    return run


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _meta(settings: FinetuneSettings) -> dict[str, object]:
    return {
        "refcli": refcli.__version__,
        "trained_on": list(settings.data.train),
        "steps": settings.train.steps,
        "batch_size": settings.train.batch_size * settings.train.accumulate,
        "seed": settings.train.seed,
        "init_weights": _last_two_parts(settings.train.init_weights),
        "averaged": settings.train.ema_decay is not None,
    }


def _last_two_parts(name: str | None) -> str | None:
    """Give "run/weights" of a path: whose weights they were, not where they lay."""
    return None if name is None else "/".join(Path(name).parts[-2:])
