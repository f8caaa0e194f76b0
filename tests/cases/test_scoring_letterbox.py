"""oneref384 counts the pixels that a model predicts on the padding of its letterbox, as OneRef's evaluation does."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from refcli.answers.jsonl import answer_to_json
from refcli.config.schema import ModelSettings, TowerSettings
from refcli.contracts.example import Example, Region
from refcli.contracts.prediction import Prediction
from refcli.data.store.read import Store, StoreSplit
from refcli.data.store.write import write_manifest, write_split
from refcli.data.training.transforms import nearest_indices
from refcli.evaluation.evaluate import evaluate_split
from refcli.evaluation.report.document import report_split
from refcli.evaluation.run import Scoring
from refcli.geometry.box_tensors import box_iou_pairs
from refcli.geometry.frame import Frame
from refcli.geometry.masks import decode_mask, encode_mask, mask_box
from refcli.inference.predictor import Predictor
from refcli.inference.requests import Request
from refcli.text.tokenizer import Tokenizer
from refcli.weights.directory import LoadedWeights

SIZES = ((160, 120), (90, 150), (100, 100))
"""(width, height)."""
FRAME_SIDE = 384
SCORING = Scoring(conventions=("original", "oneref384"))


class Spills(nn.Module):
    """Random smooth masks and boxes over the whole letterbox; call number n always gives the same."""

    def __init__(self, side: int, cells: int) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        random = np.random.default_rng(0)
        coarse = torch.from_numpy(random.normal(size=(len(SIZES), 1, 6, 6))).float()
        self.logits = F.interpolate(coarse, size=(cells, cells), mode="bicubic") - 0.2
        corners = torch.from_numpy(random.uniform(0, side, size=(len(SIZES), 2, 2))).float()
        self.boxes = torch.cat([corners.amin(1), corners.amax(1)], 1)
        self.boxes[0] = torch.tensor([0.1 * side, 0, 0.9 * side, side])  # over the padding above and below
        self.calls = 0

    def predict(self, images, token_ids, token_is_pad) -> Prediction:
        rows = (torch.arange(len(images)) + self.calls) % len(SIZES)
        self.calls += len(images)
        return Prediction(self.boxes[rows][:, None], torch.full((len(images), 1), 0.9), self.logits[rows], None)


@pytest.fixture
def split(tmp_path):
    random = np.random.default_rng(1)
    examples = []
    for number, (width, height) in enumerate(SIZES):
        bitmap = np.zeros((height, width), dtype=bool)
        x, y = random.integers(5, 40, 2)
        bitmap[y : y + 50, x : x + 45] = True
        bitmap[:, -4:] = True
        mask = encode_mask(bitmap)
        name = f"{number}.png"
        (tmp_path / "store" / "m").mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(
            tmp_path / "store" / "m" / name
        )
        region = Region(mask_box(mask), mask)
        examples.append(Example(f"m/{number}", "m", "val", name, f"m:{number}", width, height, "it", (region,)))
    write_manifest(tmp_path / "store", [write_split(tmp_path / "store", "m", "val", examples)])
    return Store(tmp_path / "store").split("m:val")


def predictor(side: int, cells: int) -> Predictor:
    settings = ModelSettings(tower=TowerSettings(image_size=side, patch_size=16, dim=32, layers=1, heads=2, ffn_dim=32))
    loaded = LoadedWeights(Spills(side, cells), settings, Tokenizer.load(settings.text), "spills", {})
    return Predictor(loaded, precision="fp32")


def in_letterbox(mask: np.ndarray) -> np.ndarray:
    """A true mask as the published evaluation sees it."""
    height, width = mask.shape
    frame = Frame.fit(width, height, FRAME_SIDE, FRAME_SIDE)
    canvas = np.zeros((FRAME_SIDE, FRAME_SIDE), dtype=bool)
    rows, columns = nearest_indices(height, frame.resized_height), nearest_indices(width, frame.resized_width)
    canvas[frame.top : frame.top + len(rows), frame.left : frame.left + len(columns)] = mask[rows][:, columns]
    return canvas


def published(split: StoreSplit, model: Spills) -> dict[str, float]:
    """OneRef's arithmetic, written out: probability above a half at 192, bilinear to 384, above zero."""
    ious, intersections, unions, box_ious = [], 0, 0, []
    for number in range(len(split)):
        example = split[number]
        sure = (model.logits[number : number + 1].sigmoid() - 0.5).relu()
        drawn = F.interpolate(sure, size=(FRAME_SIDE, FRAME_SIDE), mode="bilinear", align_corners=False)[0, 0] > 0
        true = in_letterbox(decode_mask(example.regions[0].mask))
        both = (drawn.numpy() & true).sum(), (drawn.numpy() | true).sum()
        ious.append(both[0] / both[1])
        intersections, unions = intersections + both[0], unions + both[1]
        x1, y1, x2, y2 = (int(edge) for edge in example.regions[0].box_xyxy)
        frame = Frame.fit(example.width, example.height, FRAME_SIDE, FRAME_SIDE)
        truth = torch.from_numpy(frame.boxes_to_model(np.array([[x1, y1, x2, y2]], dtype=float)))
        found = model.boxes[number : number + 1].double().clamp(0, FRAME_SIDE)
        box_ious.append(box_iou_pairs(found, truth).item())
    return {
        "mask_miou": np.mean(ious),
        "mask_oiou": intersections / unions,
        "box_miou": np.mean(box_ious),
        "acc50": np.mean(np.array(box_ious) >= 0.5),
    }


@pytest.mark.parametrize("cells", [192, 96, 384])
def test_the_metrics_of_a_model_are_those_of_the_published_evaluation(split, cells):
    model = predictor(FRAME_SIDE, cells)
    scored = evaluate_split(model, split, name="m:val", scoring=SCORING)
    report = report_split(scored, SCORING.conventions)
    expected = published(split, Spills(FRAME_SIDE, cells))
    figures = report.conventions["oneref384"].metrics
    for name in ("mask_miou", "mask_oiou"):
        assert figures[name] == pytest.approx(expected[name], abs=1e-12), name
    assert figures["box_miou"] == pytest.approx(expected["box_miou"], abs=1e-5)  # lines round to 0.001 pixel
    assert figures["acc50"] == expected["acc50"]
    assert report.num_unframed == 0


def test_predictions_on_the_padding_lower_the_score(split):
    figures = {}
    for is_known in (True, False):
        model = predictor(FRAME_SIDE, 192)
        if not is_known:
            model.answer_requests = without_frames(model.answer_requests)
        scored = evaluate_split(model, split, name="m:val", scoring=SCORING)
        figures[is_known] = report_split(scored, SCORING.conventions).conventions["oneref384"].metrics
    for name in ("mask_miou", "mask_oiou", "box_miou"):
        assert figures[True][name] < figures[False][name] - 0.01, name


def without_frames(answer_requests):
    """Answers as other systems write them, without the frame of their model."""

    def answers(requests, *, raw):
        for answered in answer_requests(requests, raw=raw):
            targets = tuple(replace(target, frame=None) for target in answered.answer.targets)
            yield answered._replace(answer=replace(answered.answer, targets=targets))

    return answers


def test_a_model_of_another_size_is_scored_where_its_letterbox_lies_in_384_pixels(split):
    """A frame of half the size with cells of the same size gives the masks of the full frame."""
    large = evaluate_split(predictor(FRAME_SIDE, 96), split, name="m:val", scoring=SCORING).scores
    small = evaluate_split(predictor(FRAME_SIDE // 2, 96), split, name="m:val", scoring=SCORING).scores
    large_counts, small_counts = large.overlaps["letterbox384"], small.overlaps["letterbox384"]
    assert np.abs(large_counts.union / small_counts.union - 1).max() < 0.02
    assert np.abs(large_counts.intersection / small_counts.intersection - 1).max() < 0.02


def test_a_prediction_file_of_another_system_has_a_note_that_its_padding_is_unknown(refcli, split, tmp_path):
    model = predictor(FRAME_SIDE, 192)
    requests = [Request(split[row].id, "", "it", split.image_path(split[row])) for row in range(len(split))]
    records = [answer_to_json(answer) for answer in model.predict_many(requests)]
    assert all(record["targets"][0]["frame"]["size"] == [FRAME_SIDE, FRAME_SIDE] for record in records)
    asked = ("evaluate", "--data", tmp_path / "store", "--split", "m:val", "--convention", "oneref384")
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, records)))
    for record in records:
        for target in record["targets"]:
            del target["frame"]
    (tmp_path / "other.jsonl").write_text("\n".join(map(json.dumps, records)))
    note = f"oneref384: {len(SIZES)} of {len(SIZES)} answered targets have no `frame` of their model"
    _, out, _ = refcli(*asked, "--predictions", tmp_path / "other.jsonl", "--report", "--out", tmp_path / "out")
    assert note in out
    assert "padding is unknown" in (tmp_path / "out/report.html").read_text()
    assert "oneref384: " not in refcli(*asked, "--predictions", tmp_path / "own.jsonl")[1]
