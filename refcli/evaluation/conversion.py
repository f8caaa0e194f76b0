"""Write the answers of a prediction file of any format as prediction lines, without scoring them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from refcli.answers.formats import AnswerNotation
from refcli.answers.jsonl import answer_line
from refcli.data.store.read import StoreSplit
from refcli.errors import DataError, ExitCode
from refcli.evaluation.answer_lines import AnswerLines, RejectionLog
from refcli.evaluation.predictions import JoinedLines, SplitJoin, unlisted, unlisted_notes
from refcli.evaluation.run import WRONG_SIZE, RejectedLines
from refcli.files import open_atomically


@dataclass(frozen=True)
class LinesWritten:
    """The result of a conversion.

    Args:
        num_answers: lines that were written.
        num_parse_failures: those of them whose text could not be parsed.
        num_targets: boxes that were written.
        problems: rejected lines, by kind.
        warnings: what a user should know about the answers as a whole.
    """

    num_answers: int
    num_parse_failures: int
    num_targets: int
    problems: Mapping[str, RejectedLines]
    warnings: tuple[str, ...]

    @property
    def exit_code(self) -> ExitCode:
        """3 if lines were rejected."""
        return ExitCode.PARTIAL if self.problems else ExitCode.OK


def write_as_lines(path: Path, splits: Mapping[str, StoreSplit], out: Path, notation: AnswerNotation) -> LinesWritten:
    """Write a line of `refcli.prediction/1` for each answer; they score as the file itself does.

    Args:
        path: the file, see `score_file`.
        splits: the samples that it answers.
        out: the file to write, completely or not at all.
        notation: the declared notation of the file.

    Raises:
        DataError: the file cannot be read, or holds no usable answer.
    """
    lines = AnswerLines(path, RejectionLog(path.name), notation)
    joins = {name: SplitJoin(split, lines) for name, split in splits.items()}
    joined = JoinedLines(lines, splits.values())
    num_answers = num_parse_failures = num_targets = num_unlisted = 0
    with open_atomically(out) as file:
        for batch, known in joined:
            for join in joins.values():
                for _, example, line in join.add(batch, known):
                    try:
                        answer = line.answer_to(example)
                    except DataError as error:
                        lines.rejected.add(WRONG_SIZE, line.number, f"{example.id}: {error.message}")
                        continue
                    file.write(f"{answer_line(answer)}\n".encode())
                    num_answers += 1
                    num_parse_failures += answer.parse_failure
                    num_targets += len(answer.targets)
        notes = joined.finish()
        for name, split in splits.items() if notation.format.lists_boxes else ():
            for row in range(len(split)):
                if not joins[name].is_named[row]:
                    file.write(f"{answer_line(unlisted(split[row], notation))}\n".encode())
                    num_unlisted += 1
        if not num_answers + num_unlisted:
            raise _nothing(path, lines.rejected)
    warnings = tuple(f"{path.name}: {note}" for note in (*notes, *unlisted_notes(num_unlisted)))
    return LinesWritten(num_answers + num_unlisted, num_parse_failures, num_targets, lines.rejected.listed(), warnings)


def _nothing(path: Path, rejected: RejectionLog) -> DataError:
    first = next((lines.first[0] for lines in rejected.listed().values() if lines.first), "the file is empty")
    return DataError("no line of the file is an answer to a sample", where=str(path), hint=first)
