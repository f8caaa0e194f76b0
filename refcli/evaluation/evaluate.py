"""Score the Predictor on a split of a store, in a thread beside the model."""

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
"""Answers that may wait to be scored before the model waits."""


class Split(Protocol):
    """The part of a split's interface that evaluation needs: examples with images."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...

    def image_path(self, example: Example, /) -> Path:
        """The path of the example's image."""
        ...


class RawPredictor(Protocol):
    """The part of a Predictor's interface that evaluation needs."""

    def answer_requests(self, requests: Iterable[Request], *, raw: bool) -> Iterator[AnsweredRequest]:
        """Answers in the order of the requests; with `raw`, they keep their targets although `no_target` is set."""
        ...


@dataclass(frozen=True, kw_only=True)
class _ExampleRequest(Request):
    """A request for one example."""

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
    """Answer the expressions of a split and score the answers.

    Args:
        predictor: the model.
        split: the examples.
        name: `dataset:split`.
        rows: the part to score; None: everything.
        size: samples of all parts together; None: those of `rows`.
        scoring: conventions and thresholds; None: the defaults.
        on_sample: called with (samples done, samples of this part) after each.
        unread: counts expressions that the model could not read.

    Raises:
        DataError: an image has another size than the data set states.
    """
    scoring = scoring or Scoring()
    chosen = range(len(split)) if rows is None else rows

    def requests() -> Iterator[Request]:
        for index in chosen:
            example = split[index]
            source = split.image_path(example)
            yield _ExampleRequest(example.id, example.image, example.expression, source, example=example)

    table = scoring.table()
    start = time.perf_counter()
    waiting: deque[Future[SampleScore]] = deque()
    remaining = iter(chosen)
    with ThreadPoolExecutor(1, thread_name_prefix="scoring") as pool:
        for done, (request, answer, _) in enumerate(predictor.answer_requests(requests(), raw=True), start=1):
            assert isinstance(request, _ExampleRequest)
            if unread is not None:
                unread.add(answer)
            waiting.append(pool.submit(_score_as_written, request.example, answer, scoring))
            while waiting and (waiting[0].done() or len(waiting) > MOST_WAITING):
                table.add(next(remaining), waiting.popleft().result())
            if on_sample is not None:
                on_sample(done, len(chosen))
        for future in waiting:
            table.add(next(remaining), future.result())
    return SplitScores(
        name=name,
        table=table.finish(),
        size=len(chosen) if size is None else size,
        total=len(split),
        seconds=time.perf_counter() - start,
    )


def _score_as_written(example: Example, answer: Answer, scoring: Scoring) -> SampleScore:
    """Score what `predict` would write, with the precision of its lines, so that a model and its file score alike."""
    return score(example, as_written(filter_targets(answer)), scoring)


def score(example: Example, answer: Answer, scoring: Scoring) -> SampleScore:
    """The score of a sample; an answer with an error counts as missing, or as wrong if it could not be parsed.

    Raises:
        DataError: see `score_sample`.
    """
    if answer.error is not None:
        return score_unanswered(
            example,
            str(answer.error),
            counts=scoring.missing == "wrong",
            is_parse_failure=answer.parse_failure,
            frames=scoring.frames,
        )
    return score_sample(example, answer, frames=scoring.frames, score_threshold=scoring.score_threshold)
