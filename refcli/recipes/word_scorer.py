"""Create and check the model that scores words in a pre-training run (targets of STS)."""

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
    """The model that scores words: other weights, or a copy of the one to be trained; None if STS is off.

    Args:
        grounder: the model as the run starts.

    Raises:
        ConfigError: a head other than OneRef's, or weights with a head or tokenizer other than the model's.
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
            hint="name weights with the head 'oneref'; without weights, a copy of the initial model scores words",
        )
    if loaded.tokenizer.model != load_tokenizer(settings.model.text).model:
        raise ConfigError(
            "the weights that score words split them differently: their tokenizer is not the model's",
            where=where,
            hint=f"set model.text.tokenizer={loaded.settings.text.tokenizer}, or name other weights",
        )
    return FrozenTower(loaded.grounder)


def check_word_scorer(settings: PretrainSettings) -> None:
    """Check that the targets of STS will not stay random for the whole run.

    The default scorer is a copy of the initial model, and words and images are compared after the head's two
    projections: these must be trained already, or the copy must be refreshed during training.

    Raises:
        ConfigError: the copy would have random weights or projections.
        WeightsError: `train.init_weights` names nothing that can be read.
    """
    targets, origin = settings.mrefm.semantic_targets, settings.train.init_weights
    if not settings.mrefm.loss_weights.semantic_target_relation or targets.weights or targets.refresh_every:
        return
    if origin is None:
        what = "the run starts from random weights, and the copy that scores words (STS) would stay random"
    elif (head := _head_name(resolve(origin))) == settings.model.head.name:
        return
    else:
        has = f"have the head {head!r}" if head else "have no head"
        what = f"{origin}: these weights {has}, so the projections that score words (STS) would stay random"
    raise ConfigError(
        what,
        where=SCORER_KEY,
        hint=f"start from a OneRef model (--init RUN/weights, such as a first stage's), name one in "
        f"{SCORER_KEY}.weights, refresh the copy during training ({SCORER_KEY}.refresh_every=500), or leave the term "
        "out (mrefm.loss_weights.semantic_target_relation=0)",
    )


def _head_name(directory: Path) -> str | None:
    """The head of some weights; None for a tower alone."""
    return None if read_tower_settings(directory) else read_settings(directory).head.name
