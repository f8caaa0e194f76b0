"""Validation of a pre-training objective: its losses on samples that it is not trained on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn

from refcli.contracts.batch import Batch

EVEN_AND_ODD = (0, 1)
"""Objectives that alternate hide patches in even steps and words in odd ones; both are validated."""


def mean_losses(objective: nn.Module, batches: Iterable[Batch], *, bf16: bool = False) -> dict[str, float]:
    """Mean of every loss term over one pass, and `score`, their negative sum, which selects the best checkpoint.

    Masks depend on the sample only, so all validations are comparable. Batches are weighted by their samples. A term is
    itself a mean over the masked patches, masked words or referents of a batch, whose numbers differ between batches,
    so the means depend slightly on the batch size, which is constant within a run.
    """
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    device = next(objective.parameters()).device
    for batch in batches:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            terms = [objective(batch.to(device), step) for step in EVEN_AND_ODD]
        for losses in terms:
            for name, loss in losses.items():
                sums[name] += float(loss) * len(batch.ids)
                counts[name] += len(batch.ids)
    means = {name: sums[name] / counts[name] for name in sums}
    rounded = {name: round(mean, 5) for name, mean in means.items()}
    return {**rounded, "score": round(-sum(means.values()), 5)}
