"""predict: requests in, answers out, one at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from refcli.contracts.prediction import Answer
from refcli.engine.device import keep_freed_pages
from refcli.errors import ExitCode
from refcli.inference.output_folder import EarlierAnswer, OutputFolder
from refcli.inference.output_manifest import PREDICTIONS
from refcli.inference.predictor import Predictor
from refcli.inference.requests import read_requests
from refcli.inference.unread_text import UnreadText
from refcli.recipes.convert_answers import Conversion, FileFormat, convert_lines


@dataclass
class PredictSummary:
    """The outcome of a run, including the answers of the earlier run that it completed."""

    num_answers: int = 0
    num_no_target: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    """(request id, error) of the failed requests."""
    num_earlier: int = 0
    """Answers of the earlier run."""
    unread: UnreadText = field(default_factory=UnreadText)
    """Counts of this run's expressions that the model could not read completely."""
    conversion: Conversion | None = None
    """The files of another tool; the answers missing from them include those in `failures`."""

    @property
    def exit_code(self) -> ExitCode:
        """0 if all requests were answered (and written), 3 if some failed, 1 if all failed."""
        if not self.failures:
            return ExitCode.OK if self.conversion is None else self.conversion.exit_code
        return ExitCode.FAILED if len(self.failures) == self.num_answers else ExitCode.PARTIAL

    def add(self, answer: Answer | EarlierAnswer) -> None:
        """Count one more answer."""
        self.num_answers += 1
        if isinstance(answer, EarlierAnswer):
            self.num_earlier += 1
        else:
            self.unread.add(answer)
        self.num_no_target += answer.no_target
        if answer.error is not None:
            self.failures.append((answer.id, answer.error))


@dataclass(frozen=True)
class Output:
    """A folder for drawings, masks and predictions.jsonl, and the treatment of an earlier run in it."""

    path: Path
    force: bool = False
    """Remove its files first."""
    resume: bool = False
    """Complete it."""
    file_format: FileFormat | None = None
    """All answers, also those of an earlier run, are also written in this format, to the sub-folder of its name."""


def predict(
    inputs: Sequence[str],
    expressions: Sequence[str],
    *,
    request_files: Sequence[str] = (),
    load: Callable[[], Predictor] = Predictor,
    out: Output | None = None,
    on_answer: Callable[[Answer], None],
    on_note: Callable[[str], None] = lambda _: None,
) -> PredictSummary:
    """Answer every expression about every image, in order.

    Args:
        inputs: images, folders, globs, request files (`.jsonl`) or `-`.
        expressions: asked about every image.
        request_files: further request files.
        load: creates the predictor, after the inputs and the folder have been checked.
        out: the output folder; None: nothing is written.
        on_answer: called with every new answer as it arrives.
        on_note: called with a summary of the skipped entries of folders and patterns.
    """
    exclude = None if out is None else out.path
    file_format = None if out is None else out.file_format
    requests = read_requests(inputs, expressions, request_files, exclude=exclude, on_note=on_note)
    summary = PredictSummary()
    with nullcontext() if out is None else OutputFolder(out.path, force=out.force, resume=out.resume) as folder:
        if folder is not None:
            folder.check_inputs([*inputs, *request_files])
        keep_freed_pages()
        predictor = load()
        if folder is not None:
            folder.begin({"command": "predict", "min_score": predictor.min_score, **weights_of(predictor)})
            requests = folder.unanswered(requests, summary.add)
        for _, answer, drawable in predictor.answer_requests(requests, keep_images=folder is not None):
            on_answer(answer)
            summary.add(answer)
            if folder is not None:
                folder.add(answer, drawable)
        if folder is not None and file_format is not None:
            folder.finish()
            with folder.files_of(file_format.name) as empty_folder:
                summary.conversion = convert_lines(folder.path / PREDICTIONS, file_format.write, empty_folder)
    return summary


def weights_of(predictor: Predictor) -> dict[str, str]:
    """The identity of the weights; device, precision and batch size may differ in a resumed run."""
    checksums = json.dumps(predictor.checksums, sort_keys=True)
    return {"weights": predictor.weights, "checksum_of_weights": hashlib.sha256(checksums.encode()).hexdigest()[:16]}
