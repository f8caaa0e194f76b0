"""Pre-train on a store: Mask Referring Modelling, or the visual tokenizer that it predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import torch
from torch import nn

from refcli.config.pretraining import PretrainSettings
from refcli.data.training.sampling import OnePass
from refcli.engine.checkpointing.state import seed_generators
from refcli.engine.distributed.world import World
from refcli.engine.loading import explain_loading_errors, iterate_batches
from refcli.engine.reporting.reporters import Reporter
from refcli.engine.stopping import StopSignals, failing_together
from refcli.grounder import Grounder
from refcli.heads.table import with_whole_head
from refcli.pretraining.mrefm import MRefM
from refcli.pretraining.pixel_clusters import PixelClusters
from refcli.pretraining.tokenizer_training import VisualTokenizerTraining
from refcli.pretraining.visual_codes import TokenizerCodes, VisualCodes, build_visual_codes
from refcli.pretraining.watching import mean_losses
from refcli.recipes.outputs import plan_outputs
from refcli.recipes.run_checks import settle_precision, settled_for_preview
from refcli.recipes.training import (
    Data,
    Parts,
    make_feed,
    open_data,
    open_training_data,
    preview_training,
    run_in_world,
    training_meta,
    training_world,
)
from refcli.recipes.word_scorer import check_word_scorer, make_word_scorer
from refcli.text.roles import RoleFinder, role_finder
from refcli.weights.checks import LEARNT_OUTPUTS
from refcli.weights.directory import save_weights
from refcli.weights.locate import resolve
from refcli.weights.tokenizers import load_tokenizer, save_visual_tokenizer
from refcli.weights.transfer import load_pretraining_heads, save_pretraining_heads, start_from

PICTURES_AT_ONCE = 16
"""How many images are loaded together where their patches are clustered."""


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
    settings = settings.model_copy(update={"model": with_whole_head(settings.model)})
    weights = out / "weights"

    def save(trained: nn.Module) -> None:
        meta = training_meta(settings) | {"objective": settings.objective, "tasks": []}
        if isinstance(trained, MRefM) and settings.mrefm.loss_weights.grounding:
            data = open_training_data(settings, store_path=store_path)
            meta[LEARNT_OUTPUTS] = list(plan_outputs(settings, data, ()).learnt)
        if isinstance(trained, VisualTokenizerTraining):
            save_visual_tokenizer(weights, trained.tokenizer, meta=meta)
            return
        assert isinstance(trained, MRefM)
        save_weights(weights, trained.grounder, settings.model, meta=meta)
        save_pretraining_heads(weights, trained.heads)

    with training_world(settings.train.device, out) as world:
        settings = settle_precision(settings, world, out, resume=resume, reporter=reporter)
        run_in_world(
            settings,
            world,
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
    settings, lines = settled_for_preview(settings)
    return [*lines, *preview_training(settings, lambda own, world: build(own, store_path, world))]


def build(settings: PretrainSettings, store_path: Path, world: World, starts: bool = True) -> Parts:
    """Open the data and make the objective; nothing is written.

    Args:
        starts: read `train.init_weights` and cluster patches. A resumed run has everything in its checkpoint, visual
            codes and word scorer as well; the weights that the settings name for these two are nevertheless read
            again, for their sizes, before what the checkpoint has is put in.

    Raises:
        RefcliError: settings, data or weights that do not fit.
    """
    tokenizer = load_tokenizer(settings.model.text)
    if settings.objective == "mrefm" and starts:
        check_word_scorer(settings)
    data = open_data(settings, store_path=store_path, tokenizer=tokenizer, find_roles=_role_finder(settings))
    seed_generators(settings.train.seed)
    signals = StopSignals()
    validator = _validator(data, settings, signals) if data.watched else None
    if settings.objective == "visual_tokenizer":
        training = VisualTokenizerTraining(settings.visual_tokenizer, settings.model.tower)
        feed = make_feed(settings, data, world, validator, signals)
        return Parts(training, feed, data, {"visual tokenizer": training})
    grounder = Grounder.from_settings(settings.model)
    notes: tuple[str, ...] = ()
    origin = settings.train.init_weights if starts else None
    if origin:
        notes += start_from(origin, grounder, settings.model)
    codes: VisualCodes | None = None
    if settings.mrefm.loss_weights.mim:
        codes = build_visual_codes(settings.mrefm.visual_codes, settings.model.tower, device="cpu")
    mrefm = MRefM(
        grounder,
        settings.mrefm,
        codes=codes,
        teacher=make_word_scorer(settings, grounder),
        mask_id=tokenizer.mask_id,
        seed=settings.train.seed,
    )
    if origin:
        notes += load_pretraining_heads(resolve(origin), mrefm.heads)
    if starts and isinstance(codes, PixelClusters):  # it takes longest, so that all that can be refused has been
        _fit(codes, settings, data, world)
        notes += (f"{codes.num_codes} visual codes were found in the patches of the training images",)
    named = {"tower": grounder.tower, f"head {settings.model.head.name}": grounder.head, "MRefM's heads": mrefm.heads}
    named |= {"word scorer": mrefm.teacher} if mrefm.teacher else {}
    named |= {"visual tokenizer": codes} if isinstance(codes, TokenizerCodes) else {}
    return Parts(
        mrefm,
        make_feed(settings, data, world, validator, signals),
        data,
        named,
        notes=notes,
        frozen=(*mrefm.frozen, *((grounder.tower,) if settings.train.freeze_tower else ())),
        compiled=(grounder.tower, grounder.head),
    )


def _role_finder(settings: PretrainSettings) -> RoleFinder | None:
    """The parser, where subject and object are hidden first; None where nobody asks for them."""
    if settings.objective != "mrefm" or settings.mrefm.text_masking.prefer == "none":
        return None
    weights = settings.mrefm.loss_weights
    has_terms = weights.mlm or weights.semantic_target_relation or weights.grounding
    return role_finder(settings.mrefm.text_masking.parser) if has_terms else None


def _fit(codes: PixelClusters, settings: PretrainSettings, data: Data, world: World) -> None:
    """Cluster the patches once, in the main process; the others take over what it found.

    Raises:
        RefcliError: images that cannot be read.
    """
    with failing_together(world), explain_loading_errors():
        if world.is_main:
            codes.fit(_pictures(settings, data), seed=settings.train.seed)
    codes.load_state_dict(world.gather(codes.state_dict())[0])


def _pictures(settings: PretrainSettings, data: Data) -> Iterator[torch.Tensor]:
    """Batches of training images, the same for every number of processes and every batch size."""
    alone = World(rank=0, size=1, device=torch.device("cpu"))
    train = settings.train.model_copy(update={"batch_size": PICTURES_AT_ONCE})
    with closing(make_feed(settings.model_copy(update={"train": train}), data, alone).batches(0)) as batches:
        for batch in batches:
            yield batch.images


def _validator(data: Data, settings: PretrainSettings, signals: StopSignals) -> Callable[[nn.Module], dict[str, float]]:
    watched = data.watched
    assert watched is not None

    def run(model: nn.Module) -> dict[str, float]:
        order = OnePass(len(watched), batch_size=settings.train.batch_size)
        with closing(
            iterate_batches(watched, order, data.collate, workers=settings.data.workers, signals=signals)
        ) as batches:
            return mean_losses(model, signals.interruptible(batches), bf16=settings.train.precision == "bf16")

    return run
