"""`refcli predict`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refcli.cli.options import WEIGHTS_METAVAR, WEIGHTS_NAMES, Device, OutForce, OutResume

if TYPE_CHECKING:
    from refcli.contracts.prediction import Answer
    from refcli.recipes.predict import PredictSummary

BUILTIN_NOTE = (
    "note: the builtin weights know synthetic scenes only; for photographs pick a NAME of `refcli weights list`, "
    "run `refcli weights pull NAME` and give --weights NAME"
)
MOST_FAILURES_LISTED = 20
SECONDS_BETWEEN_NEWS = 0.2


class Format(str, Enum):
    """How answers look on stdout."""

    jsonl = "jsonl"
    table = "table"


class PrecisionChoice(str, Enum):
    """Type of the model's weights."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


Weights = Annotated[
    str,
    typer.Option("--weights", "-w", help=f"The model to ask: {WEIGHTS_NAMES}.", metavar=WEIGHTS_METAVAR),
]
Precision = Annotated[PrecisionChoice, typer.Option("--precision", help="Type of the weights; auto is the fastest.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="Pairs per forward pass.", min=1)]


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
            help="What to look for; may be given several times. Request lines may have their own.",
            metavar="TEXT",
        ),
    ] = None,
    requests: Annotated[
        list[str] | None,
        typer.Option(
            "--requests", "-r", help='File of lines {"image": ..., "expression": ...}, or -.', metavar="FILE|-"
        ),
    ] = None,
    weights: Weights = "builtin",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write drawings, masks and predictions.jsonl here.", metavar="DIR"),
    ] = None,
    format_: Annotated[Format, typer.Option("--format", "-f", help="What stdout gets.")] = Format.jsonl,
    min_score: Annotated[
        float | None, typer.Option("--min-score", help="Drop targets below this confidence.", min=0, max=1)
    ] = None,
    device: Device = None,
    precision: Precision = PrecisionChoice.auto,
    batch_size: BatchSize = None,
    resume: OutResume = False,
    force: OutForce = False,
) -> None:
    """Find what expressions mean in images: one JSON line per (image, expression) on stdout.

    Boxes are xyxy pixels of the image; masks are COCO run lengths.
    Exit code 3: some requests failed (they have "error" and are listed on stderr); 1: all did.
    """
    from functools import partial

    from refcli.answers.jsonl import answer_line
    from refcli.cli.output import log, printable, write_line
    from refcli.errors import UsageError
    from refcli.inference.predictor import Predictor
    from refcli.recipes.predict import Output, predict

    if out is None and (resume or force):
        raise UsageError(f"{'--resume' if resume else '--force'} needs an output folder", hint="give --out DIR")
    to_text = answer_line if format_ is Format.jsonl else table_line
    load = partial(
        Predictor,
        weights,
        device=device or "auto",
        precision=precision.value,
        batch_size=batch_size,
        min_score=min_score,
    )
    with Counting() as counting:

        def show(answer: Answer) -> None:
            if weights == "builtin" and not counting.count:
                log(BUILTIN_NOTE)
            write_line(to_text(answer))
            counting.add()

        summary = predict(
            inputs or [],
            expressions or [],
            request_files=requests or [],
            load=load,
            out=None if out is None else Output(out, force=force, resume=resume),
            on_answer=show,
            on_note=lambda text: log(printable(f"note: {text}")),
        )
    _log_summary(summary, out)
    if summary.exit_code:
        raise typer.Exit(int(summary.exit_code))


def table_line(answer: Answer) -> str:
    """An answer as aligned columns: verdict, score, box, image, expression; a line for every target.

    A box that the head did not give, the tight one of its mask, is marked as such.
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


class Counting:
    """A running count on stderr where it is a terminal and stdout is not (the lines are then their own progress)."""

    def __init__(self) -> None:
        import sys

        self._is_shown = sys.stderr.isatty() and not sys.stdout.isatty()
        self.count = 0
        self._next_news = 0.0

    def __enter__(self) -> Counting:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._is_shown:
            self._write("")

    def add(self) -> None:
        """One more answer."""
        import time

        self.count += 1
        if self._is_shown and time.monotonic() >= self._next_news:
            self._write(f"{self.count} answered")
            self._next_news = time.monotonic() + SECONDS_BETWEEN_NEWS

    @staticmethod
    def _write(text: str) -> None:
        import sys

        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def _log_summary(summary: PredictSummary, out: Path | None) -> None:
    from refcli.cli.output import log, printable
    from refcli.errors import shorten

    if not summary.num_answers:
        log("there were no requests")
    if summary.num_earlier:
        log(f"resumed: {summary.num_earlier} of {summary.num_answers} answers were there already")
    for name, error in summary.failures[:MOST_FAILURES_LISTED]:
        log(printable(f"failed: {error}" if error.startswith(name) else f"failed: {shorten(name)}: {error}"))
    if len(summary.failures) > MOST_FAILURES_LISTED:
        log(f'failed: and {len(summary.failures) - MOST_FAILURES_LISTED} more (every line with an "error")')
    if summary.failures:
        log(f"{len(summary.failures)} of {summary.num_answers} requests failed")
    for note in summary.unread.notes():
        log(printable(f"note: {note}"))
    if out is not None:
        log(f"wrote {out / 'predictions.jsonl'}, {out / 'overlays'} and {out / 'masks'}")
