"""`refcli predict`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refcli.answers.table import WRITERS
from refcli.cli.options import (
    IMAGE_URL_NOTE,
    WEIGHTS_METAVAR,
    WEIGHTS_NAMES,
    BatchSize,
    Device,
    ImageURL,
    OutForce,
    OutResume,
    Precision,
    PrecisionChoice,
)

if TYPE_CHECKING:
    from refcli.contracts.prediction import Answer
    from refcli.recipes.predict import Output, PredictSummary

BUILTIN_NOTE = (
    "note: the builtin weights were trained on synthetic scenes only; for photographs choose a NAME of "
    "`refcli weights list`, run `refcli weights pull NAME` and give --weights NAME"
)
SECONDS_BETWEEN_UPDATES = 0.2


LINE_FORMATS = ("jsonl", "table")
"""Formats of stdout."""
FORMATS = (*LINE_FORMATS, *WRITERS)


@dataclass(frozen=True)
class PredictOptions:
    """The options of one call."""

    inputs: Sequence[str]
    expressions: Sequence[str]
    request_files: Sequence[str]
    weights: str
    out: Path | None
    format: str
    image_url: str | None
    min_score: float | None
    device: str
    precision: PrecisionChoice
    batch_size: int | None
    resume: bool
    force: bool


def command(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Images, folders, globs, request files (.jsonl), or - for request lines on stdin.",
            metavar="IMAGE...",
            show_default=False,
        ),
    ] = None,
    expressions: Annotated[
        list[str] | None,
        typer.Option(
            "--expression",
            "-e",
            help="What to look for; may be given several times. Request lines may have their own expressions.",
            metavar="TEXT",
        ),
    ] = None,
    requests: Annotated[
        list[str] | None,
        typer.Option(
            "--requests", "-r", help='File of lines {"image": ..., "expression": ...}, or -.', metavar="FILE|-"
        ),
    ] = None,
    weights: Annotated[
        str,
        typer.Option("--weights", "-w", help=f"The model to use: {WEIGHTS_NAMES}.", metavar=WEIGHTS_METAVAR),
    ] = "builtin",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write drawings, masks and predictions.jsonl to this folder.", metavar="DIR"),
    ] = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            help=f"Format of stdout: {' or '.join(LINE_FORMATS)}; or of files in DIR/FORMAT: {', '.join(WRITERS)}.",
            metavar="FORMAT",
        ),
    ] = LINE_FORMATS[0],
    image_url: ImageURL = None,
    min_score: Annotated[
        float | None, typer.Option("--min-score", help="Drop targets with a lower confidence.", min=0, max=1)
    ] = None,
    device: Device = None,
    precision: Precision = PrecisionChoice.auto,
    batch_size: BatchSize = None,
    resume: OutResume = False,
    force: OutForce = False,
) -> None:
    """Find the regions that expressions refer to.

    Each pair of image and expression gives one JSON line on stdout. Boxes are xyxy pixels of the image; masks are COCO
    run lengths. Files for another tool are written in addition, after the last answer.
    Exit code 3: some requests failed (they have "error" and are listed on stderr); 1: all failed.
    """
    options = PredictOptions(
        inputs=inputs or (),
        expressions=expressions or (),
        request_files=requests or (),
        weights=weights,
        out=out,
        format=format_,
        image_url=image_url,
        min_score=min_score,
        device=device or "auto",
        precision=precision,
        batch_size=batch_size,
        resume=resume,
        force=force,
    )
    summary = _run(options)
    _log_summary(summary, options)
    if summary.exit_code:
        raise typer.Exit(int(summary.exit_code))


def _run(options: PredictOptions) -> PredictSummary:
    """Answer all requests; answers go to stdout as they arrive."""
    from functools import partial

    from refcli.answers.jsonl import answer_line
    from refcli.cli.output import log, printable, write_line
    from refcli.inference.predictor import Predictor
    from refcli.recipes.predict import predict

    output = _output(options)
    to_text = table_line if options.format == "table" else answer_line
    with AnswerCounter() as counter:

        def show(answer: Answer) -> None:
            if options.weights == "builtin" and not counter.count:
                log(BUILTIN_NOTE)
            write_line(to_text(answer))
            counter.add()

        return predict(
            options.inputs,
            options.expressions,
            request_files=options.request_files,
            load=partial(
                Predictor,
                options.weights,
                device=options.device,
                precision=options.precision.value,
                batch_size=options.batch_size,
                min_score=options.min_score,
            ),
            out=output,
            on_answer=show,
            on_note=lambda text: log(printable(f"note: {text}")),
        )


def _output(options: PredictOptions) -> Output | None:
    """The output folder with its formats.

    Raises:
        UsageError: an unknown format, or an option that needs another one.
    """
    from refcli.errors import UsageError
    from refcli.recipes.convert_answers import file_format
    from refcli.recipes.predict import Output
    from refcli.tables import did_you_mean

    if options.format not in FORMATS:
        hint = did_you_mean(options.format, FORMATS)
        raise UsageError(f"there is no format called {options.format!r}", where="--format", hint=hint)
    is_file_format = options.format in WRITERS
    if options.out is None and (options.resume or options.force or is_file_format):
        option = "--resume" if options.resume else "--force" if options.force else f"--format {options.format}"
        raise UsageError(f"{option} needs an output folder", hint="give --out DIR")
    if options.image_url is not None and not is_file_format:
        raise UsageError(
            "only Label Studio opens images by address", where="--image-url", hint="add --format label-studio"
        )
    chosen = file_format(options.format, image_url=options.image_url) if is_file_format else None
    if options.out is None:
        return None
    return Output(options.out, force=options.force, resume=options.resume, file_format=chosen)


def table_line(answer: Answer) -> str:
    """An answer as aligned columns: verdict, score, box, image, expression; a line for every target.

    A box that is not the head's, but the tight box of its mask, is marked.
    """
    from refcli.cli.output import printable
    from refcli.errors import shorten

    asked = printable(f"{shorten(answer.image)}  {shorten(' '.join(answer.expression.split()))}")
    if answer.unknown_words:
        asked += printable(f"  (unknown words: {shorten(' '.join(answer.unknown_words))})")
    if answer.unread_text:
        asked += "  (the end was not read)"
    if answer.error is not None:
        return f"{'error':9}  {'':4}  {'':23}  {asked}  ({printable(answer.error)})"
    if answer.no_target:
        score = "" if answer.no_target_score is None else f"{answer.no_target_score:4.0%}"
        return f"{'no target':9}  {score:>4}  {'':23}  {asked}"
    lines = []
    for target in answer.targets:
        box = " ".join(f"{side:5.0f}" for side in target.box_xyxy)
        origin = " from mask" if target.box_is_from_mask else ""
        lines.append(f"{'found':9}  {target.score:4.0%}  {box}{origin}  {asked}")
    return "\n".join(lines)


class AnswerCounter:
    """A running count on stderr if stderr is a terminal and stdout is not (lines on a terminal show the progress)."""

    def __init__(self) -> None:
        import sys

        self._is_shown = sys.stderr.isatty() and not sys.stdout.isatty()
        self.count = 0
        self._next_update = 0.0

    def __enter__(self) -> AnswerCounter:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._is_shown:
            self._write("")

    def add(self) -> None:
        """Count one more answer."""
        import time

        self.count += 1
        if self._is_shown and time.monotonic() >= self._next_update:
            self._write(f"{self.count} answered")
            self._next_update = time.monotonic() + SECONDS_BETWEEN_UPDATES

    @staticmethod
    def _write(text: str) -> None:
        import sys

        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def _log_summary(summary: PredictSummary, options: PredictOptions) -> None:
    from refcli.cli.convert_answers import log_conversion
    from refcli.cli.output import MAX_FAILURES_LISTED, log, printable
    from refcli.errors import shorten

    if not summary.num_answers:
        log("there were no requests")
    if summary.num_earlier:
        log(f"resumed: {summary.num_earlier} of {summary.num_answers} answers are from the earlier run")
    for name, error in summary.failures[:MAX_FAILURES_LISTED]:
        log(printable(f"failed: {error}" if error.startswith(name) else f"failed: {shorten(name)}: {error}"))
    if len(summary.failures) > MAX_FAILURES_LISTED:
        log(f'failed: and {len(summary.failures) - MAX_FAILURES_LISTED} more (every line with an "error")')
    if summary.failures:
        log(f"{len(summary.failures)} of {summary.num_answers} requests failed")
    for note in summary.unread.notes():
        log(printable(f"note: {note}"))
    out = options.out
    if out is not None:
        log(f"wrote {out / 'predictions.jsonl'}, {out / 'overlays'} and {out / 'masks'}")
    if out is not None and summary.conversion is not None:
        log_conversion(summary.conversion, out / options.format, listed={name for name, _ in summary.failures})
        if options.format == "label-studio" and options.image_url is None:
            log(IMAGE_URL_NOTE)
