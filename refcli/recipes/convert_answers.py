"""convert-answers: prediction lines in, the files of another tool out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeAlias

from refcli.answers.table import WRITERS
from refcli.answers.written import Written
from refcli.errors import DataError, ExitCode, UsageError
from refcli.evaluation.answer_lines import Line, RejectionLog, read_lines
from refcli.evaluation.run import RejectedLines
from refcli.files import explain_write_errors
from refcli.inference.image_folders import is_empty_folder
from refcli.tables import lookup

Writer: TypeAlias = Callable[..., Written]
"""(answers, folder, min_score=...) -> what was written."""


class FileFormat(NamedTuple):
    """A format of another tool."""

    name: str
    """Row of `WRITERS`."""
    write: Writer
    """Its writer, with the options of the user."""


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
    write = file_format(answers_format, outlines=outlines, image_url=image_url).write
    if out.is_dir() and not is_empty_folder(out):
        raise UsageError("the output folder is not empty", where=f"--out {out}", hint="choose another --out")
    problems = RejectionLog(file.name)
    lines = read_lines(file, problems)
    first_line = next(lines, None)
    if first_line is None:
        found = problems.listed().values()
        first = next((problem.first[0] for problem in found if problem.first), "the file is empty")
        raise DataError("no line of the file is a prediction", where=str(file), hint=first)
    with explain_write_errors("the answers", out):
        out.mkdir(parents=True, exist_ok=True)
        return _convert(chain([first_line], lines), problems, partial(write, min_score=min_score), out)


def convert_lines(file: Path, write: Writer, folder: Path) -> Conversion:
    """Write the lines of a prediction file; there may be none.

    Args:
        file: lines of `refcli.prediction/1`, plain or gzipped.
        write: the writer of a format.
        folder: an existing, empty folder.

    Raises:
        DataError: the file cannot be read.
    """
    problems = RejectionLog(file.name)
    return _convert(read_lines(file, problems), problems, write, folder)


def _convert(lines: Iterable[Line], problems: RejectionLog, write: Writer, folder: Path) -> Conversion:
    written = write((line.answer for line in lines), folder)
    return Conversion(written, problems.listed())


def file_format(answers_format: str, *, outlines: bool = False, image_url: str | None = None) -> FileFormat:
    """A format with the options that were given.

    Raises:
        UsageError: an option belongs to another format.
        ConfigError: there is no such format.
    """
    write: Writer = lookup(WRITERS, answers_format, what="answer format")
    if outlines and answers_format != "yolo":
        raise UsageError("only YOLO label files hold outlines", where="--outlines")
    if image_url is not None and answers_format != "label-studio":
        raise UsageError("only Label Studio opens images by address", where="--image-url")
    options = ({"outlines": True} if outlines else {}) | ({} if image_url is None else {"image_url": image_url})
    return FileFormat(answers_format, partial(write, **options))
