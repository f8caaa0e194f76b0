"""Pre-train on a store: Mask Referring Modelling (MRefM), or the visual tokenizer that it predicts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import torch
from torch import nn

from refcli.config.pretraining import PretrainSettings
from refcli.engine.checkpointing.state import seed_generators
from refcli.engine.distributed.world import World
from refcli.engine.loading import explain_loading_errors
from refcli.engine.reporting.reporters import Reporter
from refcli.engine.stopping import StopSignals, failing_together
from refcli.grounder import Grounder
from refcli.heads.table import with_head_defaults
from refcli.pretraining.mrefm import MRefM
from refcli.pretraining.pixel_clusters import PixelClusters
from refcli.pretraining.validation import mean_losses
from refcli.pretraining.visual_codes import TokenizerCodes, VisualCodes, build_visual_codes
from refcli.pretraining.visual_tokenizer_training import VisualTokenizerTraining
from refcli.recipes.outputs import plan_outputs
from refcli.recipes.precision import resolve_precision
from refcli.recipes.preview import preview_training
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
    training_batches,
    training_meta,
    training_session,
)
from refcli.recipes.word_scorer import check_word_scorer, make_word_scorer
from refcli.text.roles import RoleFinder, role_finder
from refcli.weights.checks import LEARNT_OUTPUTS
from refcli.weights.directory import save_weights
from refcli.weights.locate import resolve
from refcli.weights.tokenizers import load_tokenizer, save_visual_tokenizer
from refcli.weights.transfer import load_pretraining_heads, save_pretraining_heads, start_from

IMAGES_PER_BATCH = 16
"""Number of images that are loaded at a time to cluster their patches."""


def pretrain(
    settings: PretrainSettings,
    *,
    store_path: Path,
    out: Path,
    resume: bool = False,
    force: bool = False,
    reporter: Reporter,
) -> Path:
    """Train and write the run directory `out`; returns its weights directory, from which `finetune --init` starts.

    Raises:
        RefcliError: settings, data or weights that do not fit; a loss that is not finite; a stop signal (after saving).
    """
    settings = settings.model_copy(update={"model": with_head_defaults(settings.model)})
    with training_session(
        settings, store_path=store_path, out=out, resume=resume, force=force, reporter=reporter
    ) as session:
        resumed = out / "run.yaml" if session.resumes else None
        settings, notes = resolve_precision(settings, session.world, resumed=resumed)
        session.note(notes)
        _train(settings, session)
    return out / "weights"


def _train(settings: PretrainSettings, session: Session) -> None:
    """One run. Its model must be released before the session ends, so no caller may hold it."""
    plan = plan_run(session, settings, session.out, resume=session.resume, force=session.force)
    parts = build(settings, session.store_path, session.world, plan.starts)
    trained = train_run(session, plan, parts)
    session.on_main(partial(_save, trained, parts.data, settings, session.out / "weights"))


def preview(settings: PretrainSettings, *, store_path: Path) -> list[str]:
    """Describe the run that `pretrain` would start, in lines; nothing is written or trained.

    Raises:
        RefcliError: see `pretrain`.
    """
    session = preview_session(settings, store_path)
    settings, lines = resolve_precision(settings, session.world)
    check_room_for_batches(settings, session.world)
    data = settings.data.model_copy(update={"workers": 0})
    parts = build(settings.model_copy(update={"data": data}), store_path, session.world)
    return [*lines, *preview_training(parts, settings, session.world.device)]


def build(settings: PretrainSettings, store_path: Path, world: World, starts: bool = True) -> TrainingParts:
    """Open the data and make the objective; nothing is written.

    Args:
        starts: read `train.init_weights` and cluster patches. The checkpoint of a resumed run has everything, visual
            codes and word scorer included; the weights that the settings name for these two are read again for their
            sizes, before the checkpoint is loaded.

    Raises:
        RefcliError: settings, data or weights that do not fit.
    """
    tokenizer = load_tokenizer(settings.model.text)
    if settings.objective == "mrefm" and starts:
        check_word_scorer(settings)
    data = open_data(settings, store_path=store_path, tokenizer=tokenizer, find_roles=_role_finder(settings))
    feed = make_feed(settings, data, world, score=mean_losses)

    seed_generators(settings.train.seed)
    if settings.objective == "visual_tokenizer":
        training = VisualTokenizerTraining(settings.visual_tokenizer, settings.model.tower)
        return TrainingParts(training, feed, data, {"visual tokenizer": training})
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
    if starts and isinstance(codes, PixelClusters):  # last, since it takes longest and all other checks have passed
        _fit(codes, settings, data, world)
        notes += (f"clustered the patches of the training images into {codes.num_codes} visual codes",)
    return TrainingParts(
        mrefm,
        feed,
        data,
        _named_parts(mrefm, settings),
        notes=notes,
        frozen=(*mrefm.frozen, *((grounder.tower,) if settings.train.freeze_tower else ())),
        compiled=(grounder.tower, grounder.head),
    )


def _named_parts(mrefm: MRefM, settings: PretrainSettings) -> dict[str, nn.Module]:
    grounder = mrefm.grounder
    named: dict[str, nn.Module] = {"tower": grounder.tower, f"head {settings.model.head.name}": grounder.head}
    named["MRefM's heads"] = mrefm.heads
    if mrefm.teacher is not None:
        named["word scorer"] = mrefm.teacher
    if isinstance(mrefm.codes, TokenizerCodes):
        named["visual tokenizer"] = mrefm.codes
    return named


def _role_finder(settings: PretrainSettings) -> RoleFinder | None:
    """The parser, if subject and object are masked first; None if nothing uses them."""
    if settings.objective != "mrefm" or settings.mrefm.text_masking.prefer == "none":
        return None
    weights = settings.mrefm.loss_weights
    has_terms = weights.mlm or weights.semantic_target_relation or weights.grounding
    return role_finder(settings.mrefm.text_masking.parser) if has_terms else None


def _fit(codes: PixelClusters, settings: PretrainSettings, data: Data, world: World) -> None:
    """Cluster the patches once, in the main process; the others receive the result.

    Raises:
        RefcliError: images that cannot be read.
    """
    with failing_together(world), explain_loading_errors():
        if world.is_main:
            codes.fit(_image_batches(settings, data), seed=settings.train.seed)
    codes.load_state_dict(world.gather(codes.state_dict())[0])


def _image_batches(settings: PretrainSettings, data: Data) -> Iterator[torch.Tensor]:
    """Batches of training images, the same for every number of processes and every batch size."""
    alone = World(rank=0, size=1, device=torch.device("cpu"))
    train = settings.train.model_copy(update={"batch_size": IMAGES_PER_BATCH})
    settings = settings.model_copy(update={"train": train})
    with closing(training_batches(settings, data, alone, StopSignals(), 0)) as batches:
        for batch in batches:
            yield batch.images


def _save(trained: nn.Module, data: Data, settings: PretrainSettings, weights: Path) -> None:
    meta = training_meta(settings) | {"objective": settings.objective, "tasks": []}
    if isinstance(trained, VisualTokenizerTraining):
        save_visual_tokenizer(weights, trained.tokenizer, meta=meta)
        return
    assert isinstance(trained, MRefM)
    if settings.mrefm.loss_weights.grounding:
        meta[LEARNT_OUTPUTS] = list(plan_outputs(settings, data.training, ()).learnt)
    save_weights(weights, trained.grounder, settings.model, meta=meta)
    save_pretraining_heads(weights, trained.heads)
