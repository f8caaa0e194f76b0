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


def own_folder(name: str, number: int, *, of: int) -> str:
    """What is below --out for one of several systems; nothing where it is alone."""
    return "" if of == 1 else f"{number}-{_file_name(name)}"


def write_result(result: Evaluation, own: str, *, out: Path | None, report_at: Path | None, force: bool) -> Evaluation:
    """Write the figures and the page of a system as far as asked for.

    Args:
        own: its folder below these.
        force: an earlier evaluation there is replaced.

    Returns:
        The same; its document has the files that were written.

    Raises:
        RefcliError: they cannot be written.
    """
    from refcli.cli.output import log
    from refcli.errors import RefcliError

    try:
        if out is not None:
            result = result.write(out / own, with_page=report_at is not None, force=force)
        if report_at is not None:
            from refcli.recipes.report import write_report

            log(f"wrote {write_report(result, report_at / own)}")
    except OSError as error:
        raise RefcliError(
            f"the results cannot be written: {error.strerror}",
            where=str(error.filename or out or report_at),
            hint="make room there or make it writable, or give another --out",
        ) from error
    return result


def _file_name(name: str) -> str:
    """A name of weights as part of a folder's name; RUN/weights as RUN-weights."""
    parts = Path(name).parts
    short = "-".join(parts[-2:]) if parts and parts[-1] == "weights" else Path(name).name
    plain = [letter if letter.isalnum() or letter in "._-" else "-" for letter in short]
    return "".join(plain)[:LONGEST_NAME].strip(".-") or "x"
