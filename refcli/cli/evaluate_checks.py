"""What `refcli evaluate` refuses before it computes anything."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import typer

MODEL_OPTIONS = {"device": "--device", "precision": "--precision", "batch_size": "--batch-size"}
"""What says how a model runs, by parameter."""
SCORING_OPTIONS = {"missing": "--missing", "score_threshold": "--score-threshold", "gated": "--gated"}
"""What says how answers are scored."""


def refuse_unused(context: typer.Context, *, has_model: bool, merges: bool) -> None:
    """Options that would change nothing are mistakes.

    Raises:
        UsageError: one is given.
    """
    from refcli.errors import UsageError

    unused = {**({} if has_model else MODEL_OPTIONS), **(SCORING_OPTIONS if merges else {})}
    given = [option for name, option in unused.items() if _is_given(context, name)]
    if given:
        hint = "the parts are scored already" if merges else "no model runs: --weights adds one"
        raise UsageError("this would change nothing", where=", ".join(given), hint=hint)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def check_systems(weights: Sequence[str], predictions: Sequence[Path]) -> None:
    """Find every system before the first is evaluated, which may take hours.

    Raises:
        WeightsError: there are no such weights.
        DataError: there is no such file. A pipe is none: a file is read twice.
    """
    from refcli.errors import DataError
    from refcli.weights.locate import resolve

    for name in weights:
        resolve(name)
    for file in predictions:
        if not file.is_file():
            reason = "it is not a regular file" if file.exists() else "there is none"
            raise DataError(f"the prediction file cannot be read: {reason}", where=str(file))


def check_folder(out: Path, own: Sequence[str], *, force: bool) -> None:
    """Make sure that a folder can be created, or exists and loses nothing.

    Args:
        out: the folder.
        own: those of several systems below it.
        force: earlier evaluations may be replaced.

    Raises:
        UsageError: it cannot, or something would be.
    """
    from refcli.errors import UsageError
    from refcli.evaluation.output_folder import check_free

    nearest = next(place for place in (out.absolute(), *out.absolute().parents) if os.path.lexists(place))
    if not nearest.is_dir():
        raise UsageError("no folder can be made where a file is", where=f"--out {out}", hint="give another place")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError("no folder can be written there", where=f"--out {out}", hint="give another place")
    for folder in (out, *(out / name for name in own if name)):
        check_free(folder, force=force)
