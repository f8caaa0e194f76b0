"""For `heads.py`: the cost of a trained head, and its answers with several targets and with none."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch.utils.flop_counter import FlopCounterMode

from refcli.contracts.example import Example
from refcli.contracts.prediction import Answer, Target
from refcli.data.reading.images import read_image
from refcli.data.store.read import Store, StoreSplit
from refcli.drawing.contact_sheet import contact_sheet
from refcli.drawing.encoding import encode_png
from refcli.drawing.overlays import draw_answer
from refcli.files import write_atomically
from refcli.inference.predictor import Predictor
from refcli.inference.requests import Request
from refcli.weights.directory import load_weights

NUM_CASES = 6
"""Cases drawn of each kind."""
ROUNDS = 40
EXPRESSION = "the red star left of the large circle"
KINDS_OF_CASES: dict[str, Callable[[Example], bool]] = {
    "multi_target": lambda example: len(example.regions) > 1,
    "no_target": lambda example: not example.regions,
}


def cost(weights: Path) -> dict[str, float]:
    """Parameters of the head, multiply-accumulates, and milliseconds for one pair on one thread in fp32.

    Deformable sampling is not counted: it has no matrix product.
    """
    loaded = load_weights(str(weights))
    grounder = loaded.grounder.requires_grad_(False)
    ids, is_pad = (torch.from_numpy(array) for array in loaded.tokenizer.encode_batch([EXPRESSION]))
    image = torch.zeros(1, 3, *loaded.settings.tower.image_size)
    with FlopCounterMode(display=False) as of_tower:
        grounder.features(image, ids, is_pad)
    with FlopCounterMode(display=False) as of_all:
        grounder.predict(image, ids, is_pad)
    torch.set_num_threads(1)
    seconds = []
    with torch.inference_mode():
        for _ in range(ROUNDS):
            start = time.perf_counter()
            grounder.predict(image, ids, is_pad)
            seconds.append(time.perf_counter() - start)
    return {
        "head_parameters": sum(parameter.numel() for parameter in grounder.head.parameters()),
        "parameters": sum(parameter.numel() for parameter in grounder.parameters()),
        "tower_macs": of_tower.get_total_flops() / 2,
        "head_macs": (of_all.get_total_flops() - of_tower.get_total_flops()) / 2,
        "milliseconds": 1000 * statistics.median(seconds),
    }


def draw_cases(weights: Mapping[str, Path], store: Path, split_name: str, out: Path) -> None:
    """One sheet per kind of case: a row per expression, with the truth in the first column and then every head."""
    split = Store(store).split(split_name)
    predictors = {name: Predictor(str(path), precision="fp32") for name, path in weights.items()}
    for kind, belongs in KINDS_OF_CASES.items():
        examples = _first_of_each_image(split, belongs)
        rows = []
        for example in examples:
            path = split.image_path(example)
            request = Request(example.id, example.image, example.expression, path)
            answers = [next(predictor.predict_many([request])) for predictor in predictors.values()]
            pixels = read_image(path)
            truth = [Target(region.box_xyxy, 1.0, region.mask) for region in example.regions]
            rows += [draw_answer(pixels, Answer.to(example, truth, weights="truth"), is_truth=True)]
            rows += [draw_answer(pixels, answer) for answer in answers]
        title = f"{kind.replace('_', ' ')}, from the left: truth, " + ", ".join(predictors)
        sheet = contact_sheet(rows, columns=1 + len(predictors), cell_width=320, title=title)
        write_atomically(out / f"{kind}.png", encode_png(sheet))


def _first_of_each_image(split: StoreSplit, belongs: Callable[[Example], bool]) -> list[Example]:
    chosen: dict[str, Example] = {}
    for row in range(len(split)):
        if len(chosen) == NUM_CASES:
            break
        example = split[row]
        if belongs(example):
            chosen.setdefault(example.image, example)
    return list(chosen.values())


def n_acc_at(per_sample: Path, *, t_acc: float) -> float:
    """N-acc at the existence threshold whose T-acc is `t_acc`."""
    table = pq.read_table(per_sample, columns=["num_targets", "no_target_score"])
    scores = table.column("no_target_score").to_numpy()
    has_target = table.column("num_targets").to_numpy() > 0
    return float(np.mean(scores[~has_target] > np.quantile(scores[has_target], t_acc)))
