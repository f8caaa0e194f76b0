"""Validation means count every sample once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from refcli.contracts.batch import Batch, Targets
from refcli.pretraining.validation import mean_losses


class MeanPixel(nn.Module):
    """`both` is the mean pixel of a batch, `even` twice it in even steps alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, batch: Batch, step: int) -> dict[str, torch.Tensor]:
        mean = self.weight * batch.images.mean()
        return {"both": mean, "even": 2 * mean} if step % 2 == 0 else {"both": mean}


def make_batch(*pixels: float) -> Batch:
    count = len(pixels)
    images = torch.tensor(pixels).reshape(count, 1, 1, 1).expand(count, 3, 2, 2)
    yes = torch.ones(count, dtype=torch.bool)
    words = torch.zeros(count, 3, dtype=torch.int64)
    targets = Targets(torch.zeros(count, 4), torch.zeros(count, 2, 2, dtype=torch.bool), yes, yes)
    return Batch(images, words, words.bool(), targets, tuple(map(str, range(count))))


@pytest.mark.parametrize("sizes", [(5,), (3, 2), (2, 2, 1), (1, 4)])
def test_a_mean_over_samples_is_the_same_however_they_are_batched(sizes):
    pixels, batches = [1.0, 2.0, 4.0, 8.0, 16.0], []
    for size in sizes:
        batches.append(make_batch(*pixels[:size]))
        pixels = pixels[size:]
    with torch.inference_mode():
        means = mean_losses(MeanPixel(), batches)
    assert means == {"both": 6.2, "even": 12.4, "score": -18.6}
