"""Where `refcli evaluate` writes what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refcli.recipes.evaluate import Evaluation

LONGEST_NAME = 40


def report_folder(out: Path | None, parts: Sequence[Path]) -> Path:
    """The folder that a page is written into: --out, or the one merged run that it is about.

    Raises:
        UsageError: there is neither.
    """
    from refcli.errors import UsageError

    if out is not None:
        return out
    if len(parts) == 1 and parts[0].is_dir():
        return parts[0]
    raise UsageError("there is no folder for the page", where="--report", hint="give --out, or --merge one folder")


def write_results(results: Sequence[Evaluation], out: Path | None, report_at: Path | None) -> None:
    """Write the figures and the pages as far as asked for; several systems have a folder each."""
    from refcli.cli.output import say

    for number, result in enumerate(results, start=1):
        own = "" if len(results) == 1 else f"{number}-{_file_name(result.run.weights)}"
        if out is not None:
            result.write(out / own)
        if report_at is not None:
            from refcli.recipes.report import write_report

            say(f"wrote {write_report(result, report_at / own)}")


def _file_name(name: str) -> str:
    """A name of weights as part of a folder's name."""
    plain = [letter if letter.isalnum() or letter in "._-" else "-" for letter in Path(name).name]
    return "".join(plain)[:LONGEST_NAME].strip(".-") or "x"
