"""Scoring the Predictor that the user gets on a split of a store, one sample at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from refcli.contracts.example import Example
from refcli.contracts.prediction import Answer
from refcli.evaluation.scores import SampleScore, Scores, score_sample
from refcli.inference.requests import Request


class Split(Protocol):
    """Examples with pictures: what evaluation needs of a store's split."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...

    def image_path(self, example: Example, /) -> Path:
        """Where the example's picture lies."""
        ...


class UngatedPredictor(Protocol):
    """What evaluation needs of a Predictor."""

    def ungated(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Ordered answers that keep their targets where `no_target` is set."""
        ...


@dataclass(frozen=True)
class SplitScores:
    """All that was measured on one split."""

    name: str
    scores: Scores
    failures: tuple[tuple[str, str], ...]
    """(sample id, error) of samples that could not be answered; they are in no metric."""
    seconds: float


def evaluate_split(
    predictor: UngatedPredictor,
    split: Split,
    *,
    name: str,
    limit: int | None = None,
    on_sample: Callable[[int, int], None] | None = None,
) -> SplitScores:
    """Ask every expression of a split and score the answers.

    Args:
        predictor: the model; its batch size and precision are its own.
        split: where the examples come from.
        name: `dataset:split`.
        limit: use only the first so many samples.
        on_sample: called with (samples done, samples in all) after each.

    Raises:
        DataError: a picture whose size is not the one that the data set says.
    """
    total = len(split) if limit is None else min(limit, len(split))
    asked: deque[Example] = deque()  # filled by the predictor's reading thread, emptied here in the same order

    def requests() -> Iterator[Request]:
        for index in range(total):
            example = split[index]
            asked.append(example)
            yield Request(example.id, example.image, example.expression, split.image_path(example))

    rows: list[SampleScore] = []
    failures: list[tuple[str, str]] = []
    start = time.perf_counter()
    for done, answer in enumerate(predictor.ungated(requests()), start=1):
        example = asked.popleft()
        if answer.error is None:
            rows.append(score_sample(example, answer))
        else:
            failures.append((example.id, answer.error))
        if on_sample is not None:
            on_sample(done, total)
    return SplitScores(name, Scores.of(rows), tuple(failures), time.perf_counter() - start)
