"""Fine-tune a grounder on a store: settings -> data -> model -> loop -> weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

from torch import nn

from refcli.config.schema import FinetuneSettings
from refcli.data.sampling import OnePass
from refcli.engine.distributed import World
from refcli.engine.loading import iterate_batches
from refcli.engine.randomness import seed_generators
from refcli.engine.reporting import Reporter
from refcli.evaluation.model_frame import validate
from refcli.grounder import Grounder
from refcli.recipes.training import (
    Data,
    Parts,
    make_feed,
    open_data,
    preview_training,
    run_training,
    training_meta,
)
from refcli.text.tokenizer import Tokenizer
from refcli.weights.load import save_weights
from refcli.weights.transfer import start_from


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

    def save(trained: nn.Module) -> None:
        assert isinstance(trained, Grounder)
        save_weights(out / "weights", trained, settings.model, meta=training_meta(settings))

    run_training(
        settings,
        store_path=store_path,
        out=out,
        resume=resume,
        force=force,
        reporter=reporter,
        build=partial(build, settings, store_path),
        save=save,
    )
    return out / "weights"


def preview(settings: FinetuneSettings, *, store_path: Path) -> list[str]:
    """Lines that say what `finetune` would train on what.

    Raises:
        RefcliError: as `finetune`, as far as nothing is written or trained.
    """
    return preview_training(settings, partial(build, settings, store_path))


def build(settings: FinetuneSettings, store_path: Path, world: World, starts: bool = True) -> Parts:
    """Open the data and make the model; nothing is written.

    Args:
        starts: read `train.init_weights`; a resumed run has its own weights and does not need them.

    Raises:
        RefcliError: settings, data or weights that do not fit.
    """
    data = open_data(settings, store_path=store_path, tokenizer=Tokenizer.load(settings.model.text))
    seed_generators(settings.train.seed)
    grounder = Grounder.from_settings(settings.model)
    origin = settings.train.init_weights if starts else None
    return Parts(
        grounder,
        make_feed(settings, data, world, _validator(data, settings) if data.watched else None),
        data,
        {"tower": grounder.tower, f"head {settings.model.head.name}": grounder.head},
        notes=start_from(origin, grounder, settings.model) if origin else (),
        frozen=(grounder.tower,) if settings.train.freeze_tower else (),
        compiled=(grounder.tower, grounder.head),
    )


def _validator(data: Data, settings: FinetuneSettings) -> Callable[[nn.Module], dict[str, float]]:
    watched = data.watched
    assert watched is not None

    def run(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, Grounder)
        order = OnePass(len(watched), batch_size=settings.train.batch_size)
        with closing(iterate_batches(watched, order, data.collate, workers=settings.data.workers)) as batches:
            return validate(model, batches, bf16=settings.train.precision == "bf16")

    return run
