"""demo: new synthetic scenes, questions about them, and the packaged model's answers, offline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from refcli.contracts.example import Example
from refcli.contracts.prediction import Answer
from refcli.data.sources.synthetic import SyntheticSettings, render_scene
from refcli.drawing.contact_sheet import contact_sheet
from refcli.drawing.encoding import encode_png
from refcli.engine.device import keep_freed_pages
from refcli.errors import UsageError
from refcli.evaluation.sample_score import score_sample
from refcli.inference.output_folder import OutputFolder
from refcli.inference.output_manifest import SCENES, SHEET
from refcli.inference.postprocess import filter_targets
from refcli.inference.predictor import Predictor
from refcli.inference.requests import Request
from refcli.recipes.predict import Output, weights_of

SPLIT = "demo"
"""No training set contains scenes of this split."""
EXPRESSIONS_PER_SCENE = 4


@dataclass(frozen=True)
class DemoRow:
    """One question and its answer."""

    scene: str
    kind: str
    expression: str
    answer: Answer
    iou: float | None
    """IoU of the answer's mask (of its box, for a model without masks) with the truth; None if there is no target."""
    is_right: bool
    """IoU of at least 0.5, or "no target" if there is none."""


@dataclass(frozen=True)
class _Question:
    """One expression about a scene, with its truth."""

    scene: str
    """The file of the scene, relative to the demo's folder."""
    image: np.ndarray
    example: Example


def demo(
    out: Output, *, num_scenes: int = 6, seed: int = 0, weights: str = "builtin", device: str = "auto"
) -> list[DemoRow]:
    """Render scenes, ask a few expressions about each, and write scenes, drawings, predictions and a contact sheet.

    Args:
        out: the output folder.
        num_scenes: number of scenes.
        seed: the seed of the scenes.
        weights: a weights name or directory.
        device: the device of the model.

    Raises:
        UsageError: fewer than one scene, or an output folder that cannot be used (see `OutputFolder`).
    """
    if num_scenes < 1:
        raise UsageError("a demo needs at least one scene", where="--scenes")
    with OutputFolder(out.path, force=out.force, resume=out.resume) as folder:
        keep_freed_pages()
        predictor = Predictor(weights, device=device)
        folder.begin({"command": "demo", "scenes": num_scenes, "seed": seed, **weights_of(predictor)})
        questions = _questions(num_scenes, seed)
        requests = [Request(one.example.id, one.scene, one.example.expression, one.image) for one in questions]
        raw_answers = [answered.answer for answered in predictor.answer_requests(requests, raw=True)]
        _write_scenes(folder, questions)
        drawings = _draw(folder, requests, questions, raw_answers)
        rows = [_row(question, raw) for question, raw in zip(questions, raw_answers, strict=True)]
        title = f"refcli demo: {sum(row.is_right for row in rows)} of {len(rows)} right, weights {predictor.weights}"
        sheet = contact_sheet(drawings, columns=EXPRESSIONS_PER_SCENE, title=title)
        folder.write_files({SHEET: encode_png(sheet)})
    return rows


def _questions(num_scenes: int, seed: int) -> list[_Question]:
    """A few expressions per scene, of as many kinds as the scene has."""
    settings = SyntheticSettings(seed=seed)
    questions = []
    for number in range(num_scenes):
        scene = render_scene(settings, SPLIT, number)
        name = f"{SCENES}/scene-{number:03d}.png"
        questions += [_Question(name, scene.image, example) for example in choose_varied(scene.examples)]
    return questions


def choose_varied(examples: tuple[Example, ...], count: int = EXPRESSIONS_PER_SCENE) -> list[Example]:
    """Up to `count` examples, in their order: first one of each kind, then the next ones."""
    first_of_kind = {example.kind: example for example in reversed(examples)}.values()
    ranked = sorted(examples, key=lambda example: (example not in first_of_kind, examples.index(example)))
    return sorted(ranked[:count], key=examples.index)


def _write_scenes(folder: OutputFolder, questions: Sequence[_Question]) -> None:
    folder.subfolder(SCENES)
    for scene, image in {question.scene: question.image for question in questions}.items():
        folder.write_files({scene: encode_png(image)})


def _draw(
    folder: OutputFolder, requests: Sequence[Request], questions: Sequence[_Question], raw_answers: Sequence[Answer]
) -> list[Image.Image]:
    """The drawings of all answers; those that an earlier run did not write are written."""
    unanswered = {request.id for request in folder.unanswered(requests)}
    drawings = []
    for request, question, raw in zip(requests, questions, raw_answers, strict=True):
        draw = folder.add if request.id in unanswered else folder.draw
        drawings.append(draw(filter_targets(raw), question.image))
    return drawings


def _row(question: _Question, raw: Answer) -> DemoRow:
    example, answer = question.example, filter_targets(raw)
    score = score_sample(example, raw)
    iou = None
    if score.has_target:
        iou = 0.0 if answer.no_target else score.mask_iou if score.mask_is_known else score.box_iou
    is_right = answer.no_target if iou is None else iou >= 0.5
    return DemoRow(question.scene, example.kind or "", example.expression, answer, iou, is_right)
