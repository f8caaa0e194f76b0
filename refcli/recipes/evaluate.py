"""evaluate: a model or a prediction file, a store and some splits in, figures out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from refcli.data.shard import Shard
from refcli.data.store.read import Store, StoreSplit
from refcli.engine.device import keep_freed_pages
from refcli.errors import ExitCode, UsageError
from refcli.evaluation.comparison import compare_runs
from refcli.evaluation.evaluate import evaluate_split
from refcli.evaluation.output_folder import PAGE, SUMMARY, write_summary
from refcli.evaluation.predictions import score_file
from refcli.evaluation.report.cases import Cases, ask_again, choose_cases, find_answers, make_cases
from refcli.evaluation.report.document import RunReport, SplitReport, report_document, report_run
from refcli.evaluation.run import PER_SAMPLE, Run, Scoring, SplitScores, gated_run, merge_runs, read_run, write_run
from refcli.evaluation.score_table import ROW
from refcli.inference.device import Precision
from refcli.inference.predictor import Predictor
from refcli.inference.unread_text import UnreadText
from refcli.weights.locate import BUILTIN, RUN_WEIGHTS, resolve

GROUPS_KEPT = 4
"""Row groups of a split in memory at a time; a store has at most 10,000 examples in each."""
OnSample = Callable[[str, int, int], None]
"""Called with (split, samples done, samples of this part) after each sample."""


@dataclass(frozen=True)
class Evaluation:
    """One system's samples, its figures, and the figures as a JSON document."""

    run: Run
    report: RunReport
    document: Mapping[str, object]
    cases: Mapping[str, Cases] | None = None
    """Samples to look at, by split; None where no answers are at hand."""
    other: str | None = None
    """The name of the run that this one is compared with."""

    @property
    def reports(self) -> tuple[SplitReport, ...]:
        """The figures of every split."""
        return self.report.splits

    @property
    def exit_code(self) -> ExitCode:
        """0 where all went well, 3 where samples have no answer or lines no use, 1 where nothing was scored."""
        if not any(split.overall.count for split in self.reports) and any(split.failures for split in self.reports):
            return ExitCode.FAILED
        is_whole = not self.report.problems and not any(split.failures for split in self.reports)
        return ExitCode.OK if is_whole else ExitCode.PARTIAL

    def compared_with(self, other: Run) -> Evaluation:
        """The same, with a comparison to another run; both are gated if this one was to be.

        Raises:
            DataError: they cannot be compared.
        """
        if self.run.scoring.gated:
            other = gated_run(other)
        report = replace(self.report, comparisons=tuple(compare_runs(self.run, other)))
        return replace(self, report=report, document=report_document(report), other=other.weights)

    def write(self, out: Path, *, with_page: bool = False, force: bool = False) -> Evaluation:
        """Write the figures and every sample into a folder, each file whole or not at all.

        Args:
            out: a folder that is missing or empty.
            with_page: a report will be written beside them.
            force: the folder may hold an earlier evaluation, which is replaced.

        Returns:
            The same, with the files in its document.

        Raises:
            UsageError: something in the folder would be lost.
        """
        files = sorted([PER_SAMPLE, SUMMARY, *([PAGE] if with_page else [])])
        document = {**self.document, "files": files}
        write_summary(out, document, files, force=force)
        write_run(self.run, out / PER_SAMPLE)
        return replace(self, document=document)


def evaluate(
    store_path: Path,
    split_names: Sequence[str],
    *,
    weights: str = "builtin",
    device: str = "auto",
    precision: Precision = "auto",
    batch_size: int | None = None,
    limit: int | None = None,
    shard: Shard | None = None,
    scoring: Scoring | None = None,
    num_cases: int = 0,
    out: Path | None = None,
    on_sample: OnSample | None = None,
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
        shard: only a part of these.
        scoring: conventions and thresholds; None: the default ones.
        num_cases: so many of the worst samples, and as many at random, are kept with their answers.
        out: a missing or empty folder for summary.json and per_sample.parquet.
        on_sample: is called with the progress.

    Raises:
        UsageError: no split, or one that is named twice.
        DataError: no such store or split.
    """
    asked = _open_splits(store_path, split_names, limit, shard or Shard())
    how = scoring or Scoring()
    keep_freed_pages()
    predictor = Predictor(weights, device=device, precision=precision, batch_size=batch_size)
    results, unread = [], UnreadText()
    for name, (split, rows, size) in asked.items():

        def report_progress(done: int, total: int, name: str = name) -> None:
            if on_sample is not None:
                on_sample(name, done, total)

        results.append(
            evaluate_split(
                predictor,
                split,
                name=name,
                rows=rows,
                size=size,
                scoring=how,
                on_sample=report_progress,
                unread=unread,
            )
        )
    warnings = [one for scored in results for one in _missing_images(scored, asked[scored.name][0])]
    kind = str(predictor.dtype).removeprefix("torch.")
    run = Run(system_name(weights), kind, how, tuple(results), warnings=(*warnings, *unread.notes()))
    cases: dict[str, Cases] = {}
    for scored in results if num_cases else ():
        split, choice = asked[scored.name][0], choose_cases(scored, num_cases)
        cases[scored.name] = make_cases(scored, split, choice, ask_again(predictor, split, choice))
    return _evaluation(run, out, cases)


def _missing_images(scored: SplitScores, split: StoreSplit) -> list[str]:
    """What to do about the first failed sample, if its image is not there."""
    failed = scored.table.filter(scored.table["error"].is_valid())[ROW].slice(0, 1).to_pylist()
    place = split.image_path(split[failed[0]]) if failed else None
    if place is None or place.exists():
        return []
    return [
        f"images of {scored.name} are missing, the first is {place}; prepare the data again with --images FOLDER, "
        "which says where they are"
    ]


def system_name(weights: str) -> str:
    """What weights are called in tables: `builtin`, or their folder; of a training run RUN/weights.

    Raises:
        WeightsError: there are none.
    """
    if weights == BUILTIN:
        return weights
    folder = resolve(weights).resolve()
    return "/".join(folder.parts[-2:]) if folder.name == RUN_WEIGHTS else folder.name


def evaluate_file(
    predictions: Path,
    store_path: Path,
    split_names: Sequence[str],
    *,
    limit: int | None = None,
    shard: Shard | None = None,
    scoring: Scoring | None = None,
    num_cases: int = 0,
    out: Path | None = None,
    on_sample: OnSample | None = None,
) -> Evaluation:
    """Score a prediction file (`refcli.prediction/1`, plain or gzipped) of any system on splits of a store.

    Args:
        predictions: the file; see `score_file` for what becomes of unusable lines.
        store_path: a store made by `refcli prepare-data`.
        split_names: `dataset:split` names.
        limit: only the first so many samples of each split.
        shard: only a part of these.
        scoring: conventions and thresholds; None: the default ones.
        num_cases: so many of the worst samples, and as many at random, are kept with their answers.
        out: a missing or empty folder for summary.json and per_sample.parquet.
        on_sample: is called with the progress.

    Raises:
        UsageError: no split, or one that is named twice.
        DataError: no such store or split, or a file that cannot be read.
    """
    asked = _open_splits(store_path, split_names, limit, shard or Shard())
    run = score_file(
        predictions,
        {name: split for name, (split, _, _) in asked.items()},
        rows={name: rows for name, (_, rows, _) in asked.items()},
        sizes={name: size for name, (_, _, size) in asked.items()},
        scoring=scoring,
        on_sample=on_sample,
    )
    if not num_cases:
        return _evaluation(run, out, {})
    splits = {name: split for name, (split, _, _) in asked.items()}
    choices = {scored.name: choose_cases(scored, num_cases) for scored in run.splits}
    answers = find_answers(predictions, splits, choices)
    cases = {one.name: make_cases(one, splits[one.name], choices[one.name], answers[one.name]) for one in run.splits}
    return _evaluation(run, out, cases)


def merge_evaluations(parts: Sequence[Path], *, out: Path | None = None) -> Evaluation:
    """The evaluation of a whole run from its shards' folders (or their per_sample.parquet).

    Raises:
        UsageError: no part, or one that is named twice.
        DataError: a part cannot be read, they are not of one run, or they are not each sample exactly once.
    """
    if not parts or len({part.resolve() for part in parts}) != len(parts):
        raise UsageError("name every part once", where="--merge", hint="refcli evaluate --merge DIR DIR ...")
    return _evaluation(merge_runs({str(part): read_run(part) for part in parts}), out)


def _evaluation(run: Run, out: Path | None, cases: Mapping[str, Cases] | None = None) -> Evaluation:
    run = gated_run(run) if run.scoring.gated else run
    report = report_run(run)
    evaluation = Evaluation(run, report, report_document(report), cases)
    return evaluation if out is None else evaluation.write(out)


def _open_splits(
    store_path: Path, names: Sequence[str], limit: int | None, shard: Shard
) -> dict[str, tuple[StoreSplit, range, int]]:
    """Each split, the rows of it that are scored here, and how many are scored in all parts together."""
    store = Store(store_path)
    if not names or len(set(names)) != len(names):
        raise UsageError(
            "name every split once" if names else "there is no split to evaluate on",
            where="--split",
            hint="known: " + ", ".join(store.names()),
        )
    if limit is not None and limit < 1:
        raise UsageError(f"{limit} samples cannot be evaluated", where="--limit")
    splits = {name: store.split(name, groups_kept=GROUPS_KEPT) for name in names}
    sizes = {name: len(split) if limit is None else min(limit, len(split)) for name, split in splits.items()}
    return {name: (split, shard.rows(sizes[name]), sizes[name]) for name, split in splits.items()}
