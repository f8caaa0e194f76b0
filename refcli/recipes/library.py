"""The recipes as functions for Python programs: names and paths in, results out, nothing printed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from refcli.answers.formats import REFCLI, AnswerNotation
from refcli.config.load import load_finetune, load_pretrain
from refcli.config.pretraining import PretrainSettings
from refcli.config.schema import FinetuneSettings
from refcli.contracts.example import Example
from refcli.contracts.prediction import Answer
from refcli.data.preparation.plan import DEFAULT_SIZE, Plan, origin_of, plan_file, plan_named
from refcli.data.store.read import Store
from refcli.engine.reporting.reporters import Reporter, SilentReporter
from refcli.errors import DataError, UsageError
from refcli.evaluation.metrics.measure import measure
from refcli.evaluation.results import Evaluation
from refcli.evaluation.sample_columns import ScoreColumns
from refcli.evaluation.sample_score import score_sample, score_unanswered
from refcli.recipes import evaluate as evaluation
from refcli.recipes import finetune as finetuning
from refcli.recipes import prepare_data as preparation
from refcli.recipes import pretrain as pretraining


def prepare(
    name: str,
    *,
    out: str | Path,
    raw: str | Path | None = None,
    file: str | Path | None = None,
    images: Sequence[str | Path] = (),
    splits: Sequence[str] | None = None,
    workers: int = 1,
    settings: Mapping[str, Any] | None = None,
) -> Store:
    """Prepare one data set and return the store, as `refcli prepare-data` does.

    The report beside the splits, `OUT/NAME/report.json`, lists omitted records with the reason.

    Args:
        name: a known data set (`refcli prepare-data --list`), or the name for the data set of `file`.
        out: the store; it is created where it does not exist, and its other splits stay.
        raw: folder with the published files; generated data sets and mixtures need none.
        file: a custom file, in any supported format, instead of a known data set.
        images: folders, zips or tars with the images.
        splits: only these; None for all.
        workers: number of processes.
        settings: settings of the source; for generated data also `size` (images in each split) and `seed`.

    Raises:
        RefcliError: an unknown data set or setting; missing, damaged or contradictory files.
    """
    out, given = Path(out), dict(settings or {})
    chosen = preparation.Preparation(
        out=out, images=tuple(map(Path, images)), splits=tuple(splits) if splits else None, workers=workers
    )
    plan: Plan
    if file is not None:
        if raw is not None:
            raise UsageError("file and raw exclude each other", where=name)
        plan = plan_file(Path(file), name=name, split=splits[0] if splits else None, overrides=given)
    elif origin_of(name) == "published":
        if raw is None:
            raise UsageError(f"{name} is read from its published files", where="raw", hint="give their folder as raw=")
        plan = plan_named(name, raw=Path(raw), splits=splits, overrides=given)
    else:
        if raw is not None or images:
            what = "generated" if origin_of(name) == "generated" else "a mixture"
            raise UsageError(f"{name} is {what}, not read from files", where=name, hint="leave out raw and images")
        size, seed = int(given.pop("size", DEFAULT_SIZE)), int(given.pop("seed", 0))
        plan = plan_named(name, splits=splits, overrides=given, size=size, seed=seed)
    preparation.prepare(plan, chosen)
    return Store(out)


def score_predictions(answers: Iterable[Answer], examples: Iterable[Example]) -> dict[str, float]:
    """The metrics of answers to examples, in any order; they are matched by `id`.

    Examples without an answer, and answers with an `error`, count as wrong.

    Returns:
        Metric -> value in 0..1, such as `acc50` or `mask_oiou`; metrics that the samples do not have are left out.

    Raises:
        DataError: two answers have one id, an answer belongs to no example, or an image or mask has another size than
            the example states.
    """
    given: dict[str, Answer] = {}
    for answer in answers:
        if answer.id in given:
            raise DataError("two answers have the same id", where=answer.id)
        given[answer.id] = answer
    scores = []
    for example in examples:
        found = given.pop(example.id, None)
        error = "there is no answer" if found is None else found.error
        if found is None or error is not None:
            scores.append(score_unanswered(example, str(error), counts=True))
        else:
            scores.append(score_sample(example, found))
    if given:
        raise DataError(f"{len(given)} answers belong to no example", where=next(iter(given)))
    return dict(measure(ScoreColumns.of(scores)).metrics)


def evaluate_predictions(
    predictions: str | Path,
    store: str | Path,
    splits: Sequence[str],
    *,
    answers_format: str = REFCLI,
    coordinates: str | None = None,
    input_size: str | None = None,
    out: str | Path | None = None,
) -> Evaluation:
    """Score a prediction file of any system, as `refcli evaluate --predictions` does.

    Args:
        predictions: the file, plain or gzipped.
        store: a prepared store.
        splits: "dataset:split" names.
        answers_format, coordinates, input_size: the notation of the file, see `AnswerNotation.declare`.
        out: a folder to write the metrics and every sample's score to.

    Returns:
        The evaluation; its `document` holds the metrics as plain data.

    Raises:
        RefcliError: no such store or split, or a file that cannot be read.
    """
    notation = AnswerNotation.declare(answers_format, coordinates=coordinates, input_size=input_size)
    data = evaluation.SplitSelection(Path(store), splits)
    scored = evaluation.evaluate_file(Path(predictions), data, notation=notation)
    return scored if out is None else scored.write(Path(out))


def evaluate_weights(
    weights: str | Path,
    store: str | Path,
    splits: Sequence[str],
    *,
    out: str | Path | None = None,
    device: str = "auto",
) -> Evaluation:
    """Score weights on splits of a store, as `refcli evaluate` does.

    Args:
        weights: `builtin`, a catalogue name or a weights directory.
        store: a prepared store.
        splits: "dataset:split" names.
        out: a folder to write the metrics and every sample's score to.
        device: `auto`, `cpu`, `cuda` or `mps`.

    Raises:
        RefcliError: no such weights, store or split.
    """
    data = evaluation.SplitSelection(Path(store), splits)
    scored = evaluation.evaluate_model(data, evaluation.ModelSelection(str(weights), device=device))
    return scored if out is None else scored.write(Path(out))


def finetune(
    settings: FinetuneSettings | str | Path,
    *,
    store: str | Path,
    out: str | Path,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> Path:
    """Fine-tune in this process, as `refcli finetune` does, and return the weights directory.

    Args:
        settings: from `load_finetune`, which takes overrides; or the name of a preset, or a YAML file.
        store: a prepared store.
        out: the run directory.
        resume: continue the run in `out`.
        reporter: receives the progress; None: nothing is reported.

    Raises:
        RefcliError: settings, data or weights that do not fit, or a loss that is not finite.
    """
    settings = settings if isinstance(settings, FinetuneSettings) else load_finetune(str(settings))
    return finetuning.finetune(
        settings, store_path=Path(store), out=Path(out), resume=resume, reporter=reporter or SilentReporter()
    )


def pretrain(
    settings: PretrainSettings | str | Path,
    *,
    store: str | Path,
    out: str | Path,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> Path:
    """Pre-train in this process, as `refcli pretrain` does; arguments and errors are those of `finetune`."""
    settings = settings if isinstance(settings, PretrainSettings) else load_pretrain(str(settings))
    return pretraining.pretrain(
        settings, store_path=Path(store), out=Path(out), resume=resume, reporter=reporter or SilentReporter()
    )
