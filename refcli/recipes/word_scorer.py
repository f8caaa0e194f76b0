"""Whoever scores words in a pre-training run (targets of STS), found and checked."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from refcli.config.pretraining import PretrainSettings
from refcli.errors import ConfigError
from refcli.grounder import Grounder
from refcli.heads.oneref.head import OneRefHead
from refcli.pretraining.semantic_target_relation import FrozenTower
from refcli.weights.directory import load_weights, read_settings, read_tower_settings
from refcli.weights.locate import resolve
from refcli.weights.tokenizers import load_tokenizer

SCORER_KEY = "mrefm.semantic_targets"


def make_word_scorer(settings: PretrainSettings, grounder: Grounder) -> FrozenTower | None:
    """The model that scores words: other weights, or a copy of the one to be trained; None where STS is off.

    Args:
        grounder: the model as the run starts.

    Raises:
        ConfigError: another head than OneRef's, or weights with another head or tokenizer than the model.
        WeightsError: the weights cannot be read.
    """
    if not settings.mrefm.loss_weights.semantic_target_relation:
        return None
    if not isinstance(grounder.head, OneRefHead):
        raise ConfigError("pre-training needs the head 'oneref'", where="model.head.name", hint="set it to oneref")
    name = settings.mrefm.semantic_targets.weights
    if name is None:
        return FrozenTower(copy.deepcopy(grounder))
    loaded = load_weights(name, device="cpu", dtype=torch.float32)
    where = f"{SCORER_KEY}.weights {name}"
    if not isinstance(loaded.grounder.head, OneRefHead):
        raise ConfigError(
            f"the weights that score words have the head {loaded.settings.head.name!r}, which has no common space of "
            "words and images",
            where=where,
            hint="name weights with the head 'oneref'; without weights the model scores words as this run starts",
        )
    if loaded.tokenizer.model != load_tokenizer(settings.model.text).model:
        raise ConfigError(
            "the weights that score words cut them into other pieces: their tokenizer is not the model's",
            where=where,
            hint=f"give the model theirs, model.text.tokenizer={loaded.settings.text.tokenizer}, or name other weights",
        )
    return FrozenTower(loaded.grounder)


def check_word_scorer(settings: PretrainSettings) -> None:
    """Refuse targets of STS that chance would give for the whole run.

    The default scorer is a copy of the model as the run starts, and words and pictures are compared behind the head's
    two projections: these must be trained, or be renewed as training goes on.

    Raises:
        ConfigError: the copy would be one of random weights, or have random projections.
        WeightsError: `train.init_weights` names nothing that can be read.
    """
    targets, origin = settings.mrefm.semantic_targets, settings.train.init_weights
    if not settings.mrefm.loss_weights.semantic_target_relation or targets.weights or targets.refresh_every:
        return
    if origin is None:
        what = "the run starts from nothing, and the copy of it that scores words (STS) would stay random"
    elif (head := _head_name(resolve(origin))) == settings.model.head.name:
        return
    else:
        has = f"have the head {head!r}" if head else "have no head"
        what = f"{origin}: these weights {has}, so the projections that words are scored by (STS) would stay random"
    raise ConfigError(
        what,
        where=SCORER_KEY,
        hint=f"start from a OneRef model (--init RUN/weights, such as a first stage's), name one in "
        f"{SCORER_KEY}.weights, renew the copy as training goes on ({SCORER_KEY}.refresh_every=500), or leave the term "
        "out (mrefm.loss_weights.semantic_target_relation=0)",
    )


def _head_name(directory: Path) -> str | None:
    """Which head some weights have; None for a tower alone."""
    return None if read_tower_settings(directory) else read_settings(directory).head.name
