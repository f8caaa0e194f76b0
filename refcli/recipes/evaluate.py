"""evaluate: a store and models or prediction files in, metrics and reports out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from refcli.answers.formats import ANSWER_FORMATS, REFCLI, AnswerNotation
from refcli.data.shard import Shard
from refcli.data.store.read import Store, StoreSplit
from refcli.engine.device import keep_freed_pages
from refcli.errors import DataError, UsageError
from refcli.evaluation.answer_lines import REFCLI_LINES
from refcli.evaluation.comparison import check_comparable
from refcli.evaluation.conversion import LinesWritten, write_as_lines
from refcli.evaluation.evaluate import evaluate_split
from refcli.evaluation.predictions import score_file
from refcli.evaluation.report.cases import NUM_CASES, Cases, answer_cases, choose_cases, find_answers, make_cases
from refcli.evaluation.report.document import report_document, report_run
from refcli.evaluation.results import Evaluation, check_folders, system_folders
from refcli.evaluation.run import Run, Scoring, SplitScores, gated_run, merge_runs, read_run
from refcli.evaluation.sample_columns import ROW
from refcli.files import explain_write_errors
from refcli.inference.device import Precision
from refcli.inference.predictor import Predictor
from refcli.inference.unread_text import UnreadText
from refcli.weights.locate import BUILTIN, RUN_WEIGHTS, resolve

CONVERT_OPTION = "--convert-only"
GROUPS_KEPT = 4
"""Row groups of a split in memory at a time; a store has at most 10,000 examples in each."""
OnSample = Callable[[str, int, int], None]
"""Called with (split, samples done, samples of this part) after each sample."""


@dataclass(frozen=True)
class SplitSelection:
    """The samples to score."""

    store: Path
    splits: Sequence[str]
    """`dataset:split` names."""
    limit: int | None = None
    """Only the first samples of each split; None: all."""
    shard: Shard = field(default_factory=Shard)
    """Only this part of them."""


@dataclass(frozen=True)
class ModelSelection:
    """A model and how it runs."""

    weights: str = BUILTIN
    """Name or directory."""
    device: str = "auto"
    precision: Precision = "auto"
    batch_size: int | None = None
    """Pairs per forward pass; None chooses by device."""


@dataclass(frozen=True)
class EvaluationSettings:
    """The settings of one call of `refcli evaluate`."""

    data: SplitSelection | None
    """None if parts are merged."""
    systems: tuple[ModelSelection | Path, ...] = ()
    """Models and prediction files to score."""
    notation: AnswerNotation = REFCLI_LINES
    """The declared notation of the prediction files."""
    merges: bool = False
    """Whether to merge parts, instead of scoring systems."""
    parts: tuple[Path, ...] = ()
    """The folders of the parts to merge."""
    scoring: Scoring = field(default_factory=Scoring)
    compare: Path | None = None
    """Folder or per-sample file of the run to compare with."""
    out: Path | None = None
    force: bool = False
    """Whether earlier evaluations in `out` are replaced."""
    writes_page: bool = False
    num_cases: int | None = None
    """Samples to draw on the page, of the worst and at random; None: the default."""


def evaluate(settings: EvaluationSettings, *, progress: Callable[[str], OnSample] | None = None) -> list[Evaluation]:
    """Evaluate systems one by one, or merge parts, and write the requested files.

    All inputs are checked before the first system is evaluated, which may take hours.

    Args:
        settings: the systems, the samples and the output.
        progress: returns the progress callback of a system.

    Raises:
        UsageError: contradictory settings, or something in the output folder would be lost.
        DataError: no such store, split, file or run; runs that cannot be merged or compared.
        WeightsError: no such weights.
        RefcliError: the results cannot be written.
    """
    _check_settings(settings)
    page_folder = _page_folder(settings)
    other = None if settings.compare is None else read_run(settings.compare)
    names = [_find(system) for system in settings.systems]
    if other is not None and settings.data is not None:
        has_candidates = any(isinstance(system, ModelSelection) for system in settings.systems)
        check_comparable(settings.data.splits, settings.scoring, other, has_candidates=has_candidates)
    folders = [""] if settings.merges else system_folders(names)
    if settings.out is not None:
        check_folders(settings.out, folders, force=settings.force)

    evaluations = []
    for system, folder in zip([None] if settings.merges else settings.systems, folders, strict=True):
        evaluation = _evaluate_system(system, settings, progress)
        if other is not None:
            evaluation = evaluation.compared_with(other)
        with explain_write_errors("the results", settings.out or page_folder or Path()):
            if settings.out is not None:
                evaluation = evaluation.write(
                    settings.out / folder, with_page=settings.writes_page, force=settings.force
                )
            if page_folder is not None:
                evaluation = evaluation.write_page(page_folder / folder)
        evaluations.append(evaluation)
    return evaluations


def _evaluate_system(
    system: ModelSelection | Path | None, settings: EvaluationSettings, progress: Callable[[str], OnSample] | None
) -> Evaluation:
    """Evaluate a model or a prediction file; None: merge the parts."""
    if settings.data is None or system is None:
        return merge_evaluations(settings.parts)
    data, scoring = settings.data, settings.scoring
    num_cases = (NUM_CASES if settings.num_cases is None else settings.num_cases) if settings.writes_page else 0
    if isinstance(system, Path):
        on_sample = progress(system.name) if progress else None
        return evaluate_file(
            system, data, notation=settings.notation, scoring=scoring, num_cases=num_cases, on_sample=on_sample
        )
    on_sample = progress(system_name(system.weights)) if progress else None
    return evaluate_model(data, system, scoring=scoring, num_cases=num_cases, on_sample=on_sample)


def evaluate_model(
    data: SplitSelection,
    model: ModelSelection | None = None,
    *,
    scoring: Scoring | None = None,
    num_cases: int = 0,
    on_sample: OnSample | None = None,
) -> Evaluation:
    """Score a model on splits of a store; the model is the same Predictor that `predict` uses.

    Args:
        data: the samples.
        model: the model; None: the packaged one.
        scoring: conventions and thresholds; None: the defaults.
        num_cases: number of worst samples, and of random ones, to keep with their answers.
        on_sample: receives the progress.

    Raises:
        UsageError: no split, or one that is named twice.
        DataError: no such store or split.
        WeightsError: no such weights.
    """
    parts = _open_parts(data)
    model = model or ModelSelection()
    keep_freed_pages()
    predictor = Predictor(model.weights, device=model.device, precision=model.precision, batch_size=model.batch_size)
    unread = UnreadText()
    scored = [
        evaluate_split(
            predictor,
            part.split,
            name=part.name,
            rows=part.rows,
            size=part.size,
            scoring=scoring,
            on_sample=partial(on_sample, part.name) if on_sample else None,
            unread=unread,
        )
        for part in parts
    ]
    missing = [warning for part, scores in zip(parts, scored, strict=True) for warning in _missing_images(scores, part)]
    run = Run(
        weights=system_name(model.weights),
        precision=str(predictor.dtype).removeprefix("torch."),
        scoring=scoring or Scoring(),
        splits=tuple(scored),
        warnings=(*missing, *unread.notes()),
    )
    cases = {}
    for part, scores in zip(parts, scored, strict=True) if num_cases else ():
        choice = choose_cases(scores, num_cases)
        cases[part.name] = make_cases(scores, part.split, choice, answer_cases(predictor, part.split, choice))
    return _evaluation(run, cases)


def evaluate_file(
    predictions: Path,
    data: SplitSelection,
    *,
    notation: AnswerNotation = REFCLI_LINES,
    scoring: Scoring | None = None,
    num_cases: int = 0,
    on_sample: OnSample | None = None,
) -> Evaluation:
    """Score a prediction file (plain or gzipped) of any system on splits of a store.

    Args:
        predictions: the file; for rejected lines see `score_file`.
        data: the samples.
        notation: the declared notation of the file.
        scoring: conventions and thresholds; None: the defaults.
        num_cases: number of worst samples, and of random ones, to keep with their answers.
        on_sample: receives the progress.

    Raises:
        UsageError: no split, or one that is named twice; or several, with ids that are unique in one only.
        DataError: no such store or split, or a file that cannot be read.
    """
    _check_ids(notation, data.splits)
    parts = _open_parts(data)
    splits = {part.name: part.split for part in parts}
    run = score_file(
        predictions,
        splits,
        notation=notation,
        rows={part.name: part.rows for part in parts},
        sizes={part.name: part.size for part in parts},
        scoring=scoring,
        on_sample=on_sample,
    )
    cases = {}
    if num_cases:
        choices = {scores.name: choose_cases(scores, num_cases) for scores in run.splits}
        answers = find_answers(predictions, splits, choices, notation)
        for scores in run.splits:
            name = scores.name
            cases[name] = make_cases(scores, splits[name], choices[name], answers[name])
    return _evaluation(run, cases)


def convert_predictions(
    predictions: Path, data: SplitSelection, out: Path, *, notation: AnswerNotation, force: bool = False
) -> LinesWritten:
    """Write the answers of a prediction file as lines of `refcli.prediction/1`, which score as the file itself does.

    Args:
        predictions: the file; for rejected lines see `score_file`.
        data: the samples that it answers.
        out: the file to write.
        notation: the declared notation of the file.
        force: replace `out` if it exists.

    Raises:
        UsageError: as `evaluate_file`; `out` exists; the file has prediction lines already.
        DataError: as `evaluate_file`, or the file holds no usable answer.
        RefcliError: the lines cannot be written.
    """
    where = f"{CONVERT_OPTION} {out}"
    if notation.name == REFCLI:
        others = ", ".join(name for name in ANSWER_FORMATS if name != REFCLI)
        raise UsageError(
            "prediction lines need no conversion", where=where, hint=f"give another --answers-format: {others}"
        )
    if out.is_dir() or (out.exists() and not force):
        hint = "choose another file" + ("" if out.is_dir() else ", or replace it with --force")
        raise UsageError("it is a folder" if out.is_dir() else "the file exists", where=where, hint=hint)
    _check_ids(notation, data.splits)
    _find(predictions)
    splits = {part.name: part.split for part in _open_parts(data)}
    with explain_write_errors("the lines", out):
        out.parent.mkdir(parents=True, exist_ok=True)
        return write_as_lines(predictions, splits, out, notation)


def _check_ids(notation: AnswerNotation, splits: Sequence[str]) -> None:
    """Refuse several splits for ids that are unique in one only, since an answer would count in each of them.

    Raises:
        UsageError: there are several.
    """
    if notation.format.has_own_ids and len(splits) > 1:
        raise UsageError(
            f"the ids of {notation.name} are unique in one split only", where="--split", hint="name one split"
        )


def merge_evaluations(parts: Sequence[Path]) -> Evaluation:
    """The evaluation of a whole run from the folders (or per-sample files) of its shards.

    Raises:
        UsageError: no part, or one that is named twice.
        DataError: a part cannot be read, the parts belong to different runs, or a sample is missing or repeated.
    """
    if not parts or len({part.resolve() for part in parts}) != len(parts):
        raise UsageError("name every part once", where="--merge", hint="refcli evaluate --merge DIR DIR ...")
    return _evaluation(merge_runs({str(part): read_run(part) for part in parts}), None)


def _evaluation(run: Run, cases: Mapping[str, Cases] | None) -> Evaluation:
    run = gated_run(run) if run.scoring.gated else run
    report = report_run(run)
    return Evaluation(run, report, report_document(report), cases)


@dataclass(frozen=True)
class _Part:
    """The samples of one split that are scored here."""

    name: str
    split: StoreSplit
    rows: range
    size: int
    """Samples of all shards together."""


def _open_parts(data: SplitSelection) -> list[_Part]:
    store, names = Store(data.store), data.splits
    if not names or len(set(names)) != len(names):
        raise UsageError(
            "name every split once" if names else "there is no split to evaluate on",
            where="--split",
            hint="known: " + ", ".join(store.names()),
        )
    if data.limit is not None and data.limit < 1:
        raise UsageError(f"at least one sample is needed, not {data.limit}", where="--limit")
    parts = []
    for name in names:
        split = store.split(name, groups_kept=GROUPS_KEPT)
        size = len(split) if data.limit is None else min(data.limit, len(split))
        parts.append(_Part(name, split, data.shard.rows(size), size))
    return parts


def _missing_images(scores: SplitScores, part: _Part) -> list[str]:
    """A warning if the image of the first failed sample does not exist."""
    failed = scores.table.filter(scores.table["error"].is_valid())[ROW].slice(0, 1).to_pylist()
    path = part.split.image_path(part.split[failed[0]]) if failed else None
    if path is None or path.exists():
        return []
    return [
        f"images of {part.name} are missing, the first is {path}; prepare the data again with --images FOLDER, which "
        "records where they are"
    ]


def system_name(weights: str) -> str:
    """The name of weights in tables: `builtin`, or their folder; RUN/weights for those of a training run.

    Raises:
        WeightsError: there are no such weights.
    """
    if weights == BUILTIN:
        return weights
    folder = resolve(weights).resolve()
    return "/".join(folder.parts[-2:]) if folder.name == RUN_WEIGHTS else folder.name


def _check_settings(settings: EvaluationSettings) -> None:
    """Refuse settings that contradict each other.

    Raises:
        UsageError: they do.
    """
    if settings.data is None and not settings.merges:
        raise UsageError("no store is given", where="--data")
    if settings.writes_page and _page_folder(settings) is None:
        raise UsageError("there is no folder for the page", where="--report", hint="give --out, or --merge one folder")
    if settings.num_cases is not None and (settings.merges or not settings.writes_page):
        raise UsageError("no cases are drawn here", where="--cases", hint="they need --report and no --merge")
    if settings.force and settings.out is None:
        raise UsageError("there is nothing to replace", where="--force", hint="give --out DIR")


def _page_folder(settings: EvaluationSettings) -> Path | None:
    """The folder for pages: the output folder, or that of the only part."""
    if not settings.writes_page or settings.out is not None:
        return settings.out if settings.writes_page else None
    is_one_folder = len(settings.parts) == 1 and settings.parts[0].is_dir()
    return settings.parts[0] if is_one_folder else None


def _find(system: ModelSelection | Path) -> str:
    """The name of a system, which must exist.

    Raises:
        WeightsError: there are no such weights.
        DataError: there is no such file. A pipe is refused: a file is read twice.
    """
    if isinstance(system, ModelSelection):
        return system_name(system.weights)
    if not system.is_file():
        reason = "it is not a regular file" if system.exists() else "it does not exist"
        raise DataError(f"the prediction file cannot be read: {reason}", where=str(system))
    return str(system)
