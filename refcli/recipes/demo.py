"""demo: new synthetic scenes, questions about them, and the packaged model's answers, without any download."""

from __future__ import annotations

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
from refcli.evaluation.metrics.masks import mask_iou
from refcli.evaluation.sample_score import score_sample
from refcli.inference.output_folder import OutputFolder
from refcli.inference.output_manifest import SCENES, SHEET
from refcli.inference.postprocess import filter_targets
from refcli.inference.predictor import Predictor
from refcli.inference.requests import Request
from refcli.recipes.predict import Output, weights_of

SPLIT = "demo"
"""Scenes of this split are in no training set."""
EXPRESSIONS_PER_SCENE = 4


@dataclass(frozen=True)
class DemoRow:
    """One question and how it was answered."""

    scene: str
    kind: str
    expression: str
    answer: Answer
    iou: float | None
    """IoU of the answer's mask (of its box, for a model without masks) with the truth; None where nothing is meant."""
    is_right: bool
    """IoU of at least 0.5, or "no target" where nothing is meant."""


def demo(
    out: Output, *, num_scenes: int = 6, seed: int = 0, weights: str = "builtin", device: str = "auto"
) -> list[DemoRow]:
    """Render scenes, ask a few expressions of each, and write scenes, drawings, predictions and a contact sheet.

    Args:
        out: the folder to write to.
        num_scenes: how many scenes.
        seed: other seeds give other scenes.
        weights: a weights name or directory.
        device: where the model runs.

    Raises:
        UsageError: fewer than one scene, or a folder that may not be written to (see `OutputFolder`).
    """
    if num_scenes < 1:
        raise UsageError("a demo needs a scene", where="--scenes")
    with OutputFolder(out.path, force=out.force, resume=out.resume) as folder:
        keep_freed_pages()
        predictor = Predictor(weights, device=device)
        folder.begin({"command": "demo", "scenes": num_scenes, "seed": seed, **weights_of(predictor)})
        return _show(folder, predictor, num_scenes=num_scenes, seed=seed)


def _show(folder: OutputFolder, predictor: Predictor, *, num_scenes: int, seed: int) -> list[DemoRow]:
    """Ask, and write what an earlier run has not written."""
    questions = _questions(num_scenes, seed)
    requests = [
        Request(example.id, scene_name(number), example.expression, pixels) for number, example, pixels in questions
    ]
    answered = list(predictor.answer_requests(requests, raw=True))
    rows: list[DemoRow] = []
    drawings: list[Image.Image] = []
    unanswered = {request.id for request in folder.unanswered(requests)}
    folder.subfolder(SCENES)
    for name, picture in {scene_name(number): pixels for number, _, pixels in questions}.items():
        folder.write_files({name: encode_png(picture)})
    for (request, raw, _), (_, example, pixels) in zip(answered, questions, strict=True):
        answer = filter_targets(raw)
        drawings.append((folder.add if request.id in unanswered else folder.draw)(answer, pixels))
        rows.append(_row(request.image, example, raw, answer))
    title = f"refcli demo: {sum(row.is_right for row in rows)} of {len(rows)} right, weights {predictor.weights}"
    sheet = contact_sheet(drawings, columns=EXPRESSIONS_PER_SCENE, title=title)
    folder.write_files({SHEET: encode_png(sheet)})
    return rows


def scene_name(number: int) -> str:
    """The file of a scene, below the demo's folder."""
    return f"{SCENES}/scene-{number:03d}.png"


def _questions(num_scenes: int, seed: int) -> list[tuple[int, Example, np.ndarray]]:
    """(scene number, example, image) of a few expressions per scene, of as many kinds as the scene has."""
    settings = SyntheticSettings(seed=seed)
    asked = []
    for number in range(num_scenes):
        scene = render_scene(settings, SPLIT, number)
        asked += [(number, example, scene.image) for example in choose_varied(scene.examples)]
    return asked


def choose_varied(examples: tuple[Example, ...], count: int = EXPRESSIONS_PER_SCENE) -> list[Example]:
    """Up to `count` examples, in their order: one of each kind first, then whatever comes next."""
    first_of_kind = {example.kind: example for example in reversed(examples)}.values()
    ranked = sorted(examples, key=lambda example: (example not in first_of_kind, examples.index(example)))
    return sorted(ranked[:count], key=examples.index)


def _row(scene: str, example: Example, raw: Answer, answer: Answer) -> DemoRow:
    score = score_sample(example, raw)
    iou = None
    if score.has_target:
        of_mask = mask_iou(np.array(score.mask_intersection), np.array(score.mask_union))
        iou = 0.0 if answer.no_target else float(of_mask) if score.mask_is_known else score.box_iou
    is_right = answer.no_target if iou is None else iou >= 0.5
    return DemoRow(scene, example.kind or "", example.expression, answer, iou, is_right)
