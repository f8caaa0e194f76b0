"""Scoring the Predictor that the user gets on a split of a store; scoring goes on while the model works."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from refcli.answers.jsonl import as_written
from refcli.contracts.example import Example
from refcli.contracts.prediction import Answer
from refcli.evaluation.run import Scoring, SplitScores
from refcli.evaluation.sample_score import SampleScore, score_sample, score_unanswered
from refcli.inference.postprocess import filter_targets
from refcli.inference.predictor import AnsweredRequest
from refcli.inference.requests import Request
from refcli.inference.unread_text import UnreadText

MOST_WAITING = 256
"""Answers that may wait to be scored; then the model waits."""


class Split(Protocol):
    """Examples with images: what evaluation needs of a store's split."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...

    def image_path(self, example: Example, /) -> Path:
        """Where the example's image lies."""
        ...


class RawPredictor(Protocol):
    """What evaluation needs of a Predictor."""

    def answer_requests(self, requests: Iterable[Request], *, raw: bool) -> Iterator[AnsweredRequest]:
        """Ordered answers; with `raw`, they keep their targets where `no_target` is set."""
        ...


@dataclass(frozen=True, kw_only=True)
class _ExampleRequest(Request):
    """The question about one example."""

    example: Example


def evaluate_split(
    predictor: RawPredictor,
    split: Split,
    *,
    name: str,
    rows: range | None = None,
    size: int | None = None,
    scoring: Scoring | None = None,
    on_sample: Callable[[int, int], None] | None = None,
    unread: UnreadText | None = None,
) -> SplitScores:
    """Ask the expressions of a split and score the answers, in a thread beside the model.

    Args:
        predictor: the model; its batch size and precision are its own.
        split: where the examples come from.
        name: `dataset:split`.
        rows: the part that is asked; None: everything.
        size: samples of all parts together; None: those of `rows`.
        scoring: conventions and thresholds; None: the default ones.
        on_sample: called with (samples done, samples of this part) after each.
        unread: counts expressions that the model could not read.

    Raises:
        DataError: an image whose size is not the one that the data set says.
    """
    how = scoring or Scoring()
    asked_rows = range(len(split)) if rows is None else rows

    def requests() -> Iterator[Request]:
        for index in asked_rows:
            example = split[index]
            source = split.image_path(example)
            yield _ExampleRequest(example.id, example.image, example.expression, source, example=example)

    table = how.table()
    start = time.perf_counter()
    waiting: deque[Future[SampleScore]] = deque()
    remaining = iter(asked_rows)
    with ThreadPoolExecutor(1, thread_name_prefix="scoring") as pool:
        for done, (request, answer, _) in enumerate(predictor.answer_requests(requests(), raw=True), start=1):
            assert isinstance(request, _ExampleRequest)
            if unread is not None:
                unread.add(answer)
            waiting.append(pool.submit(_score_as_written, request.example, answer, how))
            while waiting and (waiting[0].done() or len(waiting) > MOST_WAITING):
                table.add(next(remaining), waiting.popleft().result())
            if on_sample is not None:
                on_sample(done, len(asked_rows))
        for future in waiting:
            table.add(next(remaining), future.result())
    return SplitScores(
        name=name,
        table=table.finish(),
        size=len(asked_rows) if size is None else size,
        total=len(split),
        seconds=time.perf_counter() - start,
    )


def _score_as_written(example: Example, answer: Answer, how: Scoring) -> SampleScore:
    """Score what `predict` would write, with the precision of its lines: a model has the figures of its file."""
    return score(example, as_written(filter_targets(answer)), how)


def score(example: Example, answer: Answer, how: Scoring) -> SampleScore:
    """A sample's score; an answer that holds an error is none.

    Raises:
        DataError: see `score_sample`.
    """
    if answer.error is not None:
        return score_unanswered(example, str(answer.error), counts=how.missing == "wrong", frames=how.frames)
    return score_sample(example, answer, frames=how.frames, score_threshold=how.score_threshold)
