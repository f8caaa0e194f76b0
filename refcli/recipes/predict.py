"""predict: expressions about pictures in, answers out, one at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from refcli.contracts.prediction import Answer
from refcli.engine.allocator import keep_freed_pages
from refcli.errors import ExitCode
from refcli.inference.device import Precision
from refcli.inference.output_folder import OutputFolder
from refcli.inference.predictor import Predictor
from refcli.inference.requests import Request, read_requests


@dataclass(frozen=True)
class PredictSummary:
    """How a run went."""

    num_answers: int
    num_no_target: int
    failures: tuple[tuple[str, str], ...]
    """(request id, error) of the requests that could not be answered."""

    @property
    def exit_code(self) -> ExitCode:
        """0 where all was answered, 3 where some was, 1 where nothing was."""
        if not self.failures:
            return ExitCode.OK
        return ExitCode.FAILED if len(self.failures) == self.num_answers else ExitCode.PARTIAL


def predict(
    inputs: Sequence[str],
    expressions: Sequence[str],
    *,
    request_files: Sequence[str] = (),
    weights: str = "builtin",
    device: str = "auto",
    precision: Precision = "auto",
    batch_size: int | None = None,
    min_score: float | None = None,
    out: Path | None = None,
    on_answer: Callable[[Answer], None],
) -> PredictSummary:
    """Answer every expression about every picture, in order.

    Args:
        inputs: pictures, folders, globs, request files (`.jsonl`) or `-`.
        expressions: asked of every picture.
        request_files: further request files.
        weights: a weights name or directory.
        device: where the model runs.
        precision: type of its weights.
        batch_size: pairs per forward pass.
        min_score: drop targets below this confidence.
        out: a folder for drawings, masks and predictions.jsonl.
        on_answer: called with every answer as it comes.
    """
    requests = read_requests(inputs, expressions, request_files)
    keep_freed_pages()
    predictor = Predictor(weights, device=device, precision=precision, batch_size=batch_size, min_score=min_score)
    asked: deque[Request] = deque()  # filled by the predictor's reading thread, emptied here in the same order

    def remember() -> Iterator[Request]:
        for request in requests:
            asked.append(request)
            yield request

    count = num_no_target = 0
    failures: list[tuple[str, str]] = []
    with nullcontext() if out is None else OutputFolder(out) as folder:
        for answer in predictor.predict_many(remember()):
            request = asked.popleft()
            on_answer(answer)
            count += 1
            num_no_target += answer.no_target
            if answer.error is not None:
                failures.append((answer.id, answer.error))
            if folder is not None:
                folder.add(answer, request.image if request.source is None else request.source)
    return PredictSummary(count, num_no_target, tuple(failures))
