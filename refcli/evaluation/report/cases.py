"""Cases: single samples that a report draws, with their answers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from refcli.answers.formats import AnswerNotation
from refcli.contracts.example import Example
from refcli.contracts.prediction import Answer
from refcli.errors import DataError
from refcli.evaluation.answer_lines import REFCLI_LINES, AnswerLines, RejectionLog
from refcli.evaluation.evaluate import RawPredictor, Split
from refcli.evaluation.mask_frames import IMAGE
from refcli.evaluation.metrics.conventions import CONVENTIONS, ORIGINAL
from refcli.evaluation.predictions import unlisted
from refcli.evaluation.run import SplitScores
from refcli.evaluation.sample_columns import ROW, ScoreColumns
from refcli.geometry.boxes import box_area
from refcli.inference.requests import Request

NUM_CASES = 12
"""Default number of worst cases, and of random ones."""


@dataclass(frozen=True)
class Case:
    """One sample with its truth, its answer and its numbers."""

    example: Example
    answer: Answer | None
    """Before the existence gate; None if there is no usable one."""
    image: Path
    box_iou: float
    mask_iou: float
    """NaN if not measured."""


@dataclass(frozen=True)
class Cases:
    """Samples of one split that a report draws."""

    worst: tuple[Case, ...]
    """The worst first."""
    random: tuple[Case, ...]
    """In the order of the split."""


@dataclass(frozen=True)
class Choice:
    """The rows (in their split) of the samples to draw."""

    worst: tuple[int, ...]
    random: tuple[int, ...]

    @property
    def rows(self) -> tuple[int, ...]:
        """All rows, each once, in order."""
        return tuple(sorted({*self.worst, *self.random}))


def mask_ious(scores: ScoreColumns) -> np.ndarray:
    """Mask IoU per sample in pixels of the image, before the gate; NaN without a target or known masks."""
    counts = scores.overlaps[IMAGE]
    iou = CONVENTIONS[ORIGINAL].mask_iou(counts.intersection, counts.union)
    return np.where(scores.has_target & scores.mask_is_known, iou, np.nan)


def quality(scores: ScoreColumns) -> np.ndarray:
    """The quality of each answer in 0..1, by which the worst are chosen.

    With a target, the mean of box IoU and (if known) mask IoU, 0 after a wrong "no target". Without a target, 1 for
    "no target" and 0 for any other answer; NaN for systems that do not judge existence.
    """
    box, mask = np.nan_to_num(scores.box_iou), mask_ious(scores)
    found = np.where(np.isnan(mask), box, (box + np.nan_to_num(mask)) / 2)
    there = np.where(scores.says_none, 0.0, found)
    absent = np.where(scores.says_none, 1.0, np.where(scores.knows_existence, 0.0, np.nan))
    return np.where(scores.has_target, there, absent)


def choose_cases(split: SplitScores, count: int, *, seed: int = 0) -> Choice:
    """Choose the worst samples and random ones, of those that count.

    Args:
        split: the scored samples.
        count: number of the worst, and of the random ones, at most.
        seed: of the random ones, and of the order among samples that are equally bad.
    """
    rows = split.table.filter(split.table["counts"])[ROW].to_numpy()
    order = np.random.default_rng(seed).permutation(len(rows))
    badness = quality(split.scores)[order]
    ranked = order[np.argsort(badness, kind="stable")][: int((~np.isnan(badness)).sum())]
    return Choice(tuple(rows[ranked[:count]].tolist()), tuple(sorted(rows[order[:count]].tolist())))


def answer_cases(predictor: RawPredictor, split: Split, choice: Choice) -> dict[int, Answer]:
    """The answers of a model to the chosen samples, by row."""
    examples = [split[row] for row in choice.rows]
    requests = (Request(one.id, one.image, one.expression, split.image_path(one)) for one in examples)
    answers = (answered.answer for answered in predictor.answer_requests(requests, raw=True))
    return dict(zip(choice.rows, answers, strict=True))


def find_answers(
    path: Path,
    splits: Mapping[str, Split],
    choices: Mapping[str, Choice],
    notation: AnswerNotation = REFCLI_LINES,
) -> dict[str, dict[int, Answer]]:
    """Find the answers to the chosen samples in a prediction file, by split and row, in one more pass over it.

    Raises:
        DataError: the file cannot be read.
    """
    wanted: dict[str, list[tuple[str, int]]] = {}
    file = AnswerLines(path, RejectionLog(path.name), notation)
    for name, choice in choices.items():
        for row in choice.rows:
            wanted.setdefault(file.key_of(splits[name][row].id), []).append((name, row))
    answers: dict[str, dict[int, Answer]] = {name: {} for name in choices}
    lines = iter(file)
    while wanted and (line := next(lines, None)) is not None:
        for name, row in wanted.pop(line.key, []):  # the first line of an id counts
            with suppress(DataError):  # of a wrong size, which is reported where it is scored
                answers[name][row] = _before_gate(line.answer_to(splits[name][row]))
    for name, row in (place for places in wanted.values() for place in places if notation.format.lists_boxes):
        answers[name][row] = unlisted(splits[name][row], notation)
    return answers


def _before_gate(answer: Answer) -> Answer:
    """The answer with its candidates before a "no target" as targets, without empty masks."""
    if answer.targets:
        return answer
    drawn = tuple(target for target in answer.proposals if not target.box_is_from_mask or box_area(target.box_xyxy))
    return replace(answer, targets=drawn, candidates=None if drawn else answer.candidates)


def make_cases(scored: SplitScores, split: Split, choice: Choice, answers: Mapping[int, Answer]) -> Cases:
    """The chosen samples with their answers and scores; an answer that could not be scored is missing."""
    table = scored.table.filter(scored.table["counts"])
    rows, is_answered = table[ROW].to_numpy(), table["error"].is_null().to_numpy()
    box_iou, mask_iou = scored.scores.box_iou, mask_ious(scored.scores)

    def case(row: int) -> Case:
        example, at = split[row], int(np.searchsorted(rows, row))
        answer = answers.get(row) if is_answered[at] else None
        return Case(example, answer, split.image_path(example), float(box_iou[at]), float(mask_iou[at]))

    return Cases(tuple(map(case, choice.worst)), tuple(map(case, choice.random)))
