"""The results of an evaluation, and how they are written into a folder without losing other files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from refcli.data.reading.json_files import read_json
from refcli.errors import DataError, ExitCode, UsageError
from refcli.evaluation.comparison import compare_runs
from refcli.evaluation.report.cases import Cases
from refcli.evaluation.report.document import EVALUATION_SCHEMA, RunReport, SplitReport, report_document
from refcli.evaluation.run import PER_SAMPLE, Run, gated_run, write_run
from refcli.files import write_atomically
from refcli.inference.image_folders import SYSTEM_NAMES

SUMMARY, PAGE = "summary.json", "report.html"
LONGEST_NAME = 40
"""Characters of a system's name in the name of its folder."""
OWN = frozenset({PER_SAMPLE, SUMMARY, PAGE})
"""The files of an evaluation. `files` of the summary lists those that exist; other names in it are ignored."""


@dataclass(frozen=True)
class Evaluation:
    """The samples of one system, their metrics, and the metrics as a JSON document."""

    run: Run
    report: RunReport
    document: Mapping[str, object]
    cases: Mapping[str, Cases] | None = None
    """Samples to draw, by split; None where there are no answers."""
    other: str | None = None
    """The name of the run that this one is compared with."""
    page: Path | None = None
    """The HTML page, once written."""

    @property
    def reports(self) -> tuple[SplitReport, ...]:
        """The metrics of every split."""
        return self.report.splits

    @property
    def exit_code(self) -> ExitCode:
        """0 for a complete evaluation, 3 with unanswered samples or rejected lines, 1 if nothing was scored."""
        if not any(split.overall.count for split in self.reports) and any(split.failures for split in self.reports):
            return ExitCode.FAILED
        is_complete = not self.report.problems and not any(split.failures for split in self.reports)
        return ExitCode.OK if is_complete else ExitCode.PARTIAL

    def compared_with(self, other: Run) -> Evaluation:
        """A copy with a comparison to another run, which is gated if this one was asked to be.

        Raises:
            DataError: the runs cannot be compared.
        """
        if self.run.scoring.gated:
            other = gated_run(other)
        report = replace(self.report, comparisons=tuple(compare_runs(self.run, other)))
        return replace(self, report=report, document=report_document(report), other=other.weights)

    def write(self, out: Path, *, with_page: bool = False, force: bool = False) -> Evaluation:
        """Write the metrics and all samples into a folder, each file completely or not at all.

        Args:
            out: a folder that is missing or empty.
            with_page: list the page, which follows.
            force: replace an earlier evaluation in the folder.

        Returns:
            A copy whose document lists the files.

        Raises:
            UsageError: something in the folder would be lost.
        """
        files = sorted([PER_SAMPLE, SUMMARY, *([PAGE] if with_page else [])])
        document = {**self.document, "files": files}
        write_summary(out, document, files, force=force)
        write_run(self.run, out / PER_SAMPLE)
        return replace(self, document=document)

    def write_page(self, out: Path) -> Evaluation:
        """Write `report.html` into a folder, completely or not at all.

        The page needs no other file and no network. It contains no times: the same samples and answers give the same
        bytes. With the default number of cases it stays below 5 MB.

        Returns:
            A copy with the path of the page.

        Raises:
            UsageError: the folder has a page that refcli did not write.
        """
        from refcli.evaluation.report.page import render_report

        page = render_report(self.run, self.report, self.cases, other=self.other)
        out.mkdir(parents=True, exist_ok=True)
        path = locate_page(out)
        write_atomically(path, page)
        return replace(self, page=path)


def exit_code(evaluations: Sequence[Evaluation]) -> ExitCode:
    """The exit code of several evaluations together."""
    codes = {evaluation.exit_code for evaluation in evaluations}
    if codes == {ExitCode.FAILED}:
        return ExitCode.FAILED
    return ExitCode.OK if codes == {ExitCode.OK} else ExitCode.PARTIAL


def system_folders(names: Sequence[str]) -> list[str]:
    """The folders of systems below the output folder; a single system is written into the output folder itself."""
    if len(names) == 1:
        return [""]
    return [f"{number}-{_file_name(name)}" for number, name in enumerate(names, start=1)]


def _file_name(name: str) -> str:
    """The name of a system as part of a folder's name; RUN/weights becomes RUN-weights."""
    parts = Path(name).parts
    short = "-".join(parts[-2:]) if parts and parts[-1] == "weights" else Path(name).name
    plain = [letter if letter.isalnum() or letter in "._-" else "-" for letter in short]
    return "".join(plain)[:LONGEST_NAME].strip(".-") or "x"


def check_folders(out: Path, folders: Sequence[str], *, force: bool) -> None:
    """Make sure that the output folder can be created, or exists and loses nothing.

    Args:
        out: the output folder.
        folders: those of the systems below it.
        force: earlier evaluations may be replaced.

    Raises:
        UsageError: the folder cannot be written, or something would be lost.
    """
    nearest = next(place for place in (out.absolute(), *out.absolute().parents) if os.path.lexists(place))
    if not nearest.is_dir():
        raise UsageError(
            "the output folder, or one above it, is a file", where=f"--out {out}", hint="choose another --out"
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError("the output folder cannot be written", where=f"--out {out}", hint="choose another --out")
    for folder in dict.fromkeys((out, *(out / name for name in folders))):
        check_free(folder, force=force)


class _Summary(msgspec.Struct):
    schema: str
    files: list[str] = []


def check_free(folder: Path, *, force: bool = False) -> None:
    """Make sure that writing an evaluation into a folder loses nothing.

    Args:
        folder: it may be missing.
        force: an earlier evaluation may be replaced.

    Raises:
        UsageError: the folder is not empty; with `force`, it has a file of an evaluation that its
            summary does not list.
    """
    if not folder.is_dir():
        return
    names = {entry.name for entry in folder.iterdir() if entry.name.lower() not in SYSTEM_NAMES}
    listed = listed_files(folder)
    if names and not force:
        what = "holds an evaluation already" if names & listed else "is not empty"
        hint = "choose another --out" + (", or replace the evaluation with --force" if names & listed else "")
        raise UsageError(f"the folder {what}", where=f"--out {folder}", hint=hint)
    if foreign := sorted(names & OWN - listed):
        raise _not_ours(folder, foreign[0])


def write_summary(folder: Path, document: Mapping[str, object], files: Sequence[str], *, force: bool = False) -> None:
    """Start the folder of an evaluation: remove the files of an earlier one, and list those that this one will write.

    Args:
        folder: created if it is missing.
        document: the metrics.
        files: names of `OWN` that follow.
        force: see `check_free`.

    Raises:
        UsageError: see `check_free`.
    """
    check_free(folder, force=force)
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(listed_files(folder) - {SUMMARY}):
        (folder / name).unlink(missing_ok=True)
    _write(folder, {**document, "files": sorted({*files, SUMMARY})})


def locate_page(folder: Path) -> Path:
    """The path of the page, listed in the folder's summary (if there is one) before it is written.

    Raises:
        UsageError: there is a page that the summary does not list.
    """
    path, listed = folder / PAGE, listed_files(folder)
    if PAGE in listed:
        return path
    if path.is_symlink() or path.exists():
        raise _not_ours(folder, PAGE)
    if SUMMARY in listed:
        document = json.loads((folder / SUMMARY).read_bytes())
        _write(folder, {**document, "files": sorted({*listed, PAGE})})
    return path


def listed_files(folder: Path) -> frozenset[str]:
    """The files of `OWN` that the summary of a folder lists; none without a summary of an evaluation."""
    path = folder / SUMMARY
    if path.is_symlink() or not path.is_file():
        return frozenset()
    try:
        summary = read_json(path, _Summary)
    except DataError:
        return frozenset()
    return OWN & set(summary.files) if summary.schema == EVALUATION_SCHEMA else frozenset()


def _write(folder: Path, document: Mapping[str, object]) -> None:
    write_atomically(folder / SUMMARY, (json.dumps(document, indent=2) + "\n").encode())


def _not_ours(folder: Path, name: str) -> UsageError:
    return UsageError(
        f"{name} is not replaced: {SUMMARY} does not list it as a file of this evaluation",
        where=str(folder / name),
        hint="choose another --out, or remove the file yourself",
    )
