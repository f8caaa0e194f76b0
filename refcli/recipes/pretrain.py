"""Pre-train on a store: Mask Referring Modelling, or the visual tokenizer that it predicts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import torch
from torch import nn

from refcli.config.pretraining import PretrainSettings
from refcli.data.sampling import OnePass
from refcli.engine.distributed import World
from refcli.engine.loading import iterate_batches
from refcli.engine.randomness import seed_generators
from refcli.engine.reporting import Reporter
from refcli.errors import ConfigError
from refcli.grounder import Grounder
from refcli.heads.oneref import OneRefHead
from refcli.pretraining.mrefm import MRefM
from refcli.pretraining.pixel_clusters import PixelClusters
from refcli.pretraining.semantic_scores import FrozenTower
from refcli.pretraining.tokenizer_training import VisualTokenizerTraining
from refcli.pretraining.visual_codes import build_visual_codes
from refcli.pretraining.watching import mean_losses
from refcli.recipes.training import (
    Data,
    Parts,
    make_feed,
    open_data,
    preview_training,
    run_training,
    training_meta,
)
from refcli.text.roles import role_finder
from refcli.text.tokenizer import Tokenizer
from refcli.weights.load import load_weights, save_weights
from refcli.weights.locate import resolve
from refcli.weights.pretraining_heads import load_pretraining_heads, save_pretraining_heads
from refcli.weights.transfer import start_from
from refcli.weights.visual_tokenizer import save_visual_tokenizer

PICTURES_AT_ONCE = 16
"""How many pictures are loaded together where their patches are clustered."""


def pretrain(
    settings: PretrainSettings,
    *,
    store_path: Path,
    out: Path,
    resume: bool = False,
    force: bool = False,
    reporter: Reporter,
) -> Path:
    """Train and write the run directory `out`; returns its weights directory, which `finetune --init` starts from.

    Raises:
        RefcliError: settings, data or weights that do not fit; a loss that is not finite; a stop signal (all saved).
    """
    weights = out / "weights"

    def save(trained: nn.Module) -> None:
        meta = training_meta(settings) | {"objective": settings.objective, "tasks": []}
        if isinstance(trained, VisualTokenizerTraining):
            save_visual_tokenizer(weights, trained.tokenizer, meta=meta)
            return
        assert isinstance(trained, MRefM)
        save_weights(weights, trained.grounder, settings.model, meta=meta)
        save_pretraining_heads(weights, trained.heads)

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
    return weights


def preview(settings: PretrainSettings, *, store_path: Path) -> list[str]:
    """Lines that say what `pretrain` would train on what.

    Raises:
        RefcliError: as `pretrain`, as far as nothing is written or trained.
    """
    return preview_training(settings, partial(build, settings, store_path))


def build(settings: PretrainSettings, store_path: Path, world: World, starts: bool = True) -> Parts:
    """Open the data and make the objective; nothing is written.

    Args:
        starts: find initial weights and cluster patches; a resumed run has all that in its checkpoint.

    Raises:
        RefcliError: settings, data or weights that do not fit.
    """
    tokenizer = Tokenizer.load(settings.model.text)
    find_roles = role_finder(settings.mrefm.text_masking.parser) if settings.objective == "mrefm" else None
    data = open_data(settings, store_path=store_path, tokenizer=tokenizer, find_roles=find_roles)
    seed_generators(settings.train.seed)
    if settings.objective == "visual_tokenizer":
        training = VisualTokenizerTraining(settings.visual_tokenizer, settings.model.tower)
        feed = make_feed(settings, data, world, _validator(data, settings) if data.watched else None)
        return Parts(training, feed, data, {"visual tokenizer": training})
    grounder = Grounder.from_settings(settings.model)
    notes: tuple[str, ...] = ()
    origin = settings.train.init_weights if starts else None
    if origin:
        notes += start_from(origin, grounder, settings.model)
    codes = build_visual_codes(settings.mrefm.visual_codes, settings.model.tower, device="cpu")
    if starts and isinstance(codes, PixelClusters):
        codes.fit(_pictures(settings, data), seed=settings.train.seed)
        notes += (f"{codes.num_codes} visual codes were found in the patches of the training pictures",)
    mrefm = MRefM(
        grounder,
        settings.mrefm,
        codes=codes,
        teacher=_teacher(settings, grounder),
        mask_id=tokenizer.mask_id,
        seed=settings.train.seed,
    )
    if origin:
        notes += load_pretraining_heads(resolve(origin), mrefm.heads)
    named = {"tower": grounder.tower, f"head {settings.model.head.name}": grounder.head, "MRefM's heads": mrefm.heads}
    named |= {"word scorer": mrefm.teacher} if mrefm.teacher else {}
    named |= {} if isinstance(codes, PixelClusters) else {"visual tokenizer": codes}
    return Parts(
        mrefm,
        make_feed(settings, data, world, _validator(data, settings) if data.watched else None),
        data,
        named,
        notes=notes,
        frozen=(*mrefm.frozen, *((grounder.tower,) if settings.train.freeze_tower else ())),
        compiled=(grounder.tower, grounder.head),
    )


def _teacher(settings: PretrainSettings, grounder: Grounder) -> FrozenTower | None:
    """The model that scores words: other weights, or a copy of the one that is about to be trained."""
    if not settings.mrefm.loss_weights.semantic_target_relation:
        return None
    if not isinstance(grounder.head, OneRefHead):
        raise ConfigError("pre-training needs the head 'oneref'", where="model.head.name", hint="set it to oneref")
    name = settings.mrefm.semantic_targets.weights
    if name is None:
        return FrozenTower(copy.deepcopy(grounder))
    loaded = load_weights(name, device="cpu", dtype=torch.float32)
    if loaded.tokenizer.model != Tokenizer.load(settings.model.text).model or not isinstance(
        loaded.grounder.head, OneRefHead
    ):
        raise ConfigError(
            "the weights that score words have another tokenizer or another head than the model",
            where=f"mrefm.semantic_targets.weights {name}",
        )
    return FrozenTower(loaded.grounder)


def _pictures(settings: PretrainSettings, data: Data) -> Iterator[torch.Tensor]:
    """Batches of training pictures, the same in every process and for every batch size."""
    alone = World(rank=0, size=1, device=torch.device("cpu"))
    train = settings.train.model_copy(update={"batch_size": PICTURES_AT_ONCE})
    with closing(make_feed(settings.model_copy(update={"train": train}), data, alone, None).batches(0)) as batches:
        for batch in batches:
            yield batch.images


def _validator(data: Data, settings: PretrainSettings) -> Callable[[nn.Module], dict[str, float]]:
    watched = data.watched
    assert watched is not None

    def run(model: nn.Module) -> dict[str, float]:
        order = OnePass(len(watched), batch_size=settings.train.batch_size)
        with closing(iterate_batches(watched, order, data.collate, workers=settings.data.workers)) as batches:
            return mean_losses(model, batches, bf16=settings.train.precision == "bf16")

    return run
