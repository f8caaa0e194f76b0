"""Collate samples into a Batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from refcli.contracts.batch import Batch, Regions, Targets
from refcli.data.training.dataset import Sample, SampleRegions
from refcli.text.roles import RoleFinder


class _EncodesBatches(Protocol):
    """The methods of a `Tokenizer` that collation needs."""

    def plain(self, expression: str) -> str: ...

    def encode_batch(self, expressions: list[str]) -> tuple[np.ndarray, np.ndarray]: ...

    def piece_roles(self, expressions: list[str], *, find: RoleFinder) -> np.ndarray: ...


class Collate:
    """Stack samples and tokenise their expressions, padded to the longest of the batch.

    Args:
        tokenizer: turns expressions into token ids.
        find_roles: if given, the batch marks the pieces of the subject and object of each expression.
    """

    def __init__(self, tokenizer: _EncodesBatches, *, find_roles: RoleFinder | None = None) -> None:
        self.tokenizer = tokenizer
        self.find_roles = find_roles

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """The batch of one or more samples of the same model frame."""
        expressions = [self.tokenizer.plain(sample.expression) for sample in samples]
        token_ids, token_is_pad = self.tokenizer.encode_batch(expressions)
        roles = None
        if self.find_roles is not None:
            roles = torch.from_numpy(self.tokenizer.piece_roles(expressions, find=self.find_roles))
        return Batch(
            images=torch.from_numpy(np.stack([sample.image for sample in samples])),
            token_ids=torch.from_numpy(token_ids),
            token_is_pad=torch.from_numpy(token_is_pad),
            targets=Targets(
                boxes_cxcywh=torch.from_numpy(np.stack([sample.box_cxcywh for sample in samples])),
                masks=torch.from_numpy(np.stack([sample.mask for sample in samples])),
                mask_is_known=torch.tensor([sample.mask_is_known for sample in samples], dtype=torch.bool),
                exists=torch.tensor([sample.exists for sample in samples], dtype=torch.bool),
                regions=_padded_regions([sample.regions for sample in samples]),
            ),
            ids=tuple(sample.id for sample in samples),
            word_roles=roles,
        )


def _padded_regions(of_samples: Sequence[SampleRegions | None]) -> Regions | None:
    """The regions of every sample, padded to the largest number; None unless all samples have theirs."""
    samples = [regions for regions in of_samples if regions is not None]
    if len(samples) < len(of_samples):
        return None
    most = max(len(sample.boxes_cxcywh) for sample in samples)

    def padded(name: str) -> torch.Tensor:
        parts = [getattr(sample, name) for sample in samples]
        return torch.from_numpy(
            np.stack([np.pad(part, [(0, most - len(part)), *([(0, 0)] * (part.ndim - 1))]) for part in parts])
        )

    counts = torch.tensor([len(sample.boxes_cxcywh) for sample in samples])
    return Regions(
        boxes_cxcywh=padded("boxes_cxcywh"),
        masks=padded("masks"),
        is_real=torch.arange(most) < counts[:, None],
        mask_is_known=padded("mask_is_known"),
        are_separate=torch.ones(len(samples), dtype=torch.bool),
    )
