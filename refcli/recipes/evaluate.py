"""evaluate: a model, a store and some splits in, figures out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from refcli.data.store import Store
from refcli.errors import ExitCode, UsageError
from refcli.evaluation.evaluate import evaluate_split
from refcli.evaluation.report import SplitReport, report_document, report_split
from refcli.files import write_atomically
from refcli.inference.device import Precision
from refcli.inference.predictor import Predictor

SUMMARY = "summary.json"


@dataclass(frozen=True)
class Evaluation:
    """The figures of every split, and the same as a JSON document."""

    reports: tuple[SplitReport, ...]
    document: Mapping[str, object]

    @property
    def exit_code(self) -> ExitCode:
        """0 where every sample was answered, 3 where some were, 1 where none was."""
        if not any(report.failures for report in self.reports):
            return ExitCode.OK
        return ExitCode.PARTIAL if any(report.overall.count for report in self.reports) else ExitCode.FAILED


def evaluate(
    store_path: Path,
    split_names: Sequence[str],
    *,
    weights: str = "builtin",
    device: str = "auto",
    precision: Precision = "auto",
    batch_size: int | None = None,
    limit: int | None = None,
    out: Path | None = None,
    on_sample: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Score a model on splits of a store; the model is the same Predictor that `predict` uses.

    Args:
        store_path: a store made by `refcli prepare-data`.
        split_names: `dataset:split` names.
        weights: a weights name or directory.
        device: where the model runs.
        precision: type of its weights.
        batch_size: pairs per forward pass.
        limit: only the first so many samples of each split.
        out: a folder for summary.json.
        on_sample: called with (split, samples done, samples in all) after each sample.

    Raises:
        UsageError: no split, or one that is named twice.
        DataError: no such store or split.
    """
    if not split_names or len(set(split_names)) != len(split_names):
        raise UsageError(
            "name every split once" if split_names else "there is no split to evaluate on",
            where="--split",
            hint="known: " + ", ".join(Store(store_path).names()),
        )
    if limit is not None and limit < 1:
        raise UsageError(f"{limit} samples cannot be evaluated", where="--limit")
    store = Store(store_path)
    splits = {name: store.split(name) for name in split_names}
    predictor = Predictor(weights, device=device, precision=precision, batch_size=batch_size)
    reports = []
    for name, split in splits.items():

        def report_progress(done: int, total: int, name: str = name) -> None:
            if on_sample is not None:
                on_sample(name, done, total)

        reports.append(
            report_split(evaluate_split(predictor, split, name=name, limit=limit, on_sample=report_progress))
        )
    document = report_document(
        reports, weights=predictor.weights, precision=str(predictor.dtype).removeprefix("torch.")
    )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / SUMMARY, (json.dumps(document, indent=2) + "\n").encode())
    return Evaluation(tuple(reports), document)
