"""Calibration of the existence threshold, which separates "found" from "no target"."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float

from refcli.config.schema import ModelSettings
from refcli.contracts.batch import Batch
from refcli.errors import ConfigError, DataError
from refcli.grounder import Grounder


@dataclass(frozen=True)
class Calibrated:
    """A threshold on the existence probability, and its accuracies on the samples that it was chosen on."""

    threshold: float
    t_acc: float
    """Share of the samples with a target that pass."""
    n_acc: float
    """Share of the samples without a target that do not pass."""


def calibrate_grounder(
    grounder: Grounder, batches: Iterable[Batch], *, min_t_acc: float, bf16: bool = False
) -> Calibrated:
    """Choose the threshold of a grounder on one pass over validation batches; see `calibrate_existence`.

    Raises:
        ConfigError: the head has no existence output.
        DataError: all samples have a target, or none has one.
    """
    existence, has_target = collect_existence(grounder, batches, bf16=bf16)
    threshold = calibrate_existence(existence, has_target, min_t_acc=min_t_acc)
    passes = existence >= threshold
    return Calibrated(threshold, float(passes[has_target].mean()), float((~passes)[~has_target].mean()))


@torch.inference_mode()
def collect_existence(
    grounder: Grounder, batches: Iterable[Batch], *, bf16: bool = False
) -> tuple[Float[np.ndarray, " samples"], Bool[np.ndarray, " samples"]]:
    """The existence probability of every sample, and whether it has a target; puts the grounder into evaluation mode.

    Raises:
        ConfigError: the head has no existence output.
    """
    grounder.eval()
    device = next(grounder.parameters()).device
    found: list[np.ndarray] = []
    truth: list[np.ndarray] = []
    for batch in batches:
        here = batch.to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            existence = grounder.predict(here.images, here.token_ids, here.token_is_pad).existence
        if existence is None:
            raise ConfigError("the head has no existence output to calibrate", where="model.head.settings.existence")
        found.append(existence.double().cpu().numpy())
        truth.append(batch.targets.exists.cpu().numpy())
    return np.concatenate(found), np.concatenate(truth)


def with_threshold(settings: ModelSettings, threshold: float) -> ModelSettings:
    """The same model with another existence threshold."""
    head = settings.head
    return settings.model_copy(
        update={"head": head.model_copy(update={"settings": {**head.settings, "existence_threshold": threshold}})}
    )


def calibrate_existence(
    existence: Float[np.ndarray, " samples"], has_target: Bool[np.ndarray, " samples"], *, min_t_acc: float
) -> float:
    """The existence probability below which the answer should be "no target".

    Of all thresholds that at least `min_t_acc` of the samples with a target pass (T-acc), the one with the largest sum
    of T-acc and N-acc (the share of the samples without a target that do not pass).

    Raises:
        DataError: all samples have a target, or none has one.
    """
    if has_target.all() or not has_target.any():
        raise DataError(
            "a threshold needs samples with and without a target",
            where="calibration split",
            hint="choose a split with no-target expressions",
        )
    there, absent = np.sort(existence[has_target]), np.sort(existence[~has_target])
    levels = np.unique(np.concatenate([[0.0, 1.0], existence]))
    candidates = (levels[:-1] + levels[1:]) / 2
    t_acc = 1 - np.searchsorted(there, candidates, side="left") / len(there)
    n_acc = np.searchsorted(absent, candidates, side="left") / len(absent)
    return float(candidates[np.argmax(np.where(t_acc >= min_t_acc, t_acc + n_acc, -1.0))])
