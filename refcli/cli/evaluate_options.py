"""Refuse options of `refcli evaluate` that would have no effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from refcli.errors import UsageError

SYSTEM_OPTIONS = {
    "data": "--data",
    "splits": "--split",
    "weights": "--weights",
    "predictions": "--predictions",
    "shard": "--shard",
    "limit": "--limit",
    "conventions": "--convention",
}
"""Parameter -> option: the systems and samples to evaluate."""
MODEL_OPTIONS = {"device": "--device", "precision": "--precision", "batch_size": "--batch-size"}
"""Parameter -> option: how to run a model."""
SCORING_OPTIONS = {"missing": "--missing", "score_threshold": "--score-threshold", "gated": "--gated"}
"""Parameter -> option: how to score answers."""
ANSWER_OPTIONS = {
    "answers_format": "--answers-format",
    "coordinates": "--coordinates",
    "input_size": "--input-size",
    "convert_only": "--convert-only",
}
"""Parameter -> option: how to read prediction files."""
RESULT_OPTIONS = {
    "weights": "--weights",
    "merge": "--merge",
    "shard": "--shard",
    "limit": "--limit",
    "conventions": "--convention",
    "compare": "--compare",
    "json_": "--json",
    "out": "--out",
    "report": "--report",
    "num_cases": "--cases",
    "fail_under": "--fail-under",
}
"""Parameter -> option: which systems and samples are scored, and what is done with the scores."""


def refuse_unused(context: typer.Context, parts: Sequence[Path], *, merges: bool, has_model: bool) -> None:
    """Refuse options that would have no effect.

    Raises:
        UsageError: one is given.
    """
    if merges and given_options(context, SYSTEM_OPTIONS | ANSWER_OPTIONS):
        raise UsageError("--merge only joins scored parts", where="--merge", hint="give only folders and --out")
    if parts and not merges:
        raise UsageError(f"unexpected argument {str(parts[0])!r}", where="arguments", hint="folders are for --merge")
    unused = [
        *given_options(context, {} if has_model else MODEL_OPTIONS),
        *given_options(context, SCORING_OPTIONS if merges else {}),
    ]
    if unused:
        hint = "the parts are scored already" if merges else "no model runs: --weights adds one"
        raise UsageError("this has no effect here", where=", ".join(unused), hint=hint)


def given_options(context: typer.Context, options: Mapping[str, str]) -> list[str]:
    """Those of some options that the user gave."""
    sources = {name: context.get_parameter_source(name) for name in options}
    return [options[name] for name, source in sources.items() if source and source.name == "COMMANDLINE"]


def refuse_scoring(context: typer.Context, *, num_files: int) -> None:
    """Refuse options that would have no effect on --convert-only.

    Raises:
        UsageError: there is not exactly one prediction file, or an option for scoring is given.
    """
    if num_files != 1:
        raise UsageError("one prediction file is needed", where="--convert-only", hint="give --predictions FILE once")
    if unused := given_options(context, MODEL_OPTIONS | SCORING_OPTIONS | RESULT_OPTIONS):
        raise UsageError("this has no effect with --convert-only", where=", ".join(unused))
