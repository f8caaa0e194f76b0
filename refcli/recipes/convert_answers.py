"""convert-answers: prediction lines in, the files of another tool out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refcli.answers.table import WRITERS
from refcli.answers.written import Written
from refcli.errors import DataError, ExitCode, UsageError
from refcli.evaluation.predictions import RejectionLog, read_lines
from refcli.evaluation.run import RejectedLines
from refcli.files import explain_write_errors
from refcli.inference.image_folders import is_empty_folder
from refcli.tables import lookup


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion.

    Args:
        written: files, answers and targets, and the answers that the format cannot represent.
        problems: rejected lines, by kind.
    """

    written: Written
    problems: Mapping[str, RejectedLines]

    @property
    def exit_code(self) -> ExitCode:
        """3 if a line or an answer is missing from the files."""
        return ExitCode.PARTIAL if self.problems or self.written.failed else ExitCode.OK


def convert_answers(
    file: Path,
    answers_format: str,
    out: Path,
    *,
    min_score: float = 0.0,
    outlines: bool = False,
    image_url: str | None = None,
) -> Conversion:
    """Write the answers of a prediction file in the format of another tool.

    Args:
        file: lines of `refcli.prediction/1`, plain or gzipped.
        answers_format: a name in `refcli.answers.table.WRITERS`.
        out: a folder that is missing or empty.
        min_score: targets with a lower score are left out.
        outlines: YOLO: outlines of masks instead of boxes.
        image_url: Label Studio: the address of an image, see `write_label_studio`.

    Raises:
        UsageError: the folder is not empty; an option for another format than its own.
        DataError: the file cannot be read, or has no usable line.
        ConfigError: there is no such format.
    """
    write = lookup(WRITERS, answers_format, what="answer format")
    options = writer_options(answers_format, outlines=outlines, image_url=image_url)
    if out.is_dir() and not is_empty_folder(out):
        raise UsageError("the output folder is not empty", where=f"--out {out}", hint="choose another --out")
    problems = RejectionLog(file.name)
    answers = [line.answer for line in read_lines(file, problems)]
    listed = problems.listed()
    if not answers:
        first = next((problem.first[0] for problem in listed.values() if problem.first), "the file is empty")
        raise DataError("no line of the file is a prediction", where=str(file), hint=first)
    with explain_write_errors("the answers", out):
        out.mkdir(parents=True, exist_ok=True)
        written = write(answers, out, min_score=min_score, **options)
    return Conversion(written, listed)


def writer_options(answers_format: str, *, outlines: bool = False, image_url: str | None = None) -> dict[str, Any]:
    """The options that were given, for the writer of a format.

    Raises:
        UsageError: one of them belongs to another format.
    """
    if outlines and answers_format != "yolo":
        raise UsageError("only YOLO label files hold outlines", where="--outlines")
    if image_url is not None and answers_format != "label-studio":
        raise UsageError("only Label Studio opens images by address", where="--image-url")
    return ({"outlines": True} if outlines else {}) | ({} if image_url is None else {"image_url": image_url})
