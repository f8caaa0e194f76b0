"""The answers of every kind of head: all its boxes, one mask of all targets, or "no target"."""

import json

import numpy as np
import pytest
import torch

from refcli.answers.jsonl import answer_from_json, answer_to_json
from refcli.cli.predict import table_line
from refcli.config.schema import HeadChoice, ModelSettings, TowerSettings
from refcli.contracts.prediction import Prediction
from refcli.drawing.colours import OVERLAY_COLOURS
from refcli.drawing.overlays import draw_answer
from refcli.geometry.frame import Frame
from refcli.geometry.masks import decode_mask
from refcli.grounder import Grounder
from refcli.heads.cgformer.consecutive_decoder import Decoded
from refcli.heads.cgformer.head import CGFormerOutput
from refcli.heads.instances.decoder import QueryStage
from refcli.heads.instances.head import InstancesOutput
from refcli.heads.instances.seeds import find_seeds
from refcli.heads.oneref.head import OneRefOutput
from refcli.heads.rela.head import RelaOutput
from refcli.heads.shared_ris.head import SharedRISOutput
from refcli.heads.table import HEADS
from refcli.inference.postprocess import filter_targets, raw_answer
from refcli.inference.predictor import Predictor
from refcli.inference.requests import Request
from refcli.text.tokenizer import Tokenizer
from refcli.weights.directory import LoadedWeights

SIDE = 32
TOWER = TowerSettings(
    image_size=SIDE, patch_size=8, dim=32, layers=2, heads=2, ffn_dim=32, vocabulary_size=648, init="scaled"
)
PYRAMID = [8, 8, 8, 16]
SETTINGS = {
    "cgformer": {"dim": 16, "pyramid_channels": PYRAMID, "lite": True, "existence": True},
    "instances": {"dim": 16, "mask_dim": 8, "heads": 2, "ffn_dim": 16, "queries": 3, "score_threshold": 0.7},
    "oneref": {"res": True, "existence": True, "mask_upsamples": 2},
    "rela": {
        "dim": 16, "heads": 2, "regions": 2, "decoder_layers": 1, "decoder_ffn_dim": 16, "pixel_layers": 0,
        "pyramid_channels": PYRAMID,
    },
    "shared_ris": {"dim": 16, "heads": 2, "existence": True},
}  # fmt: skip
MASK_ONLY = ("cgformer", "rela", "shared_ris")
FRAME = Frame.fit(64, 64, SIDE, SIDE)
"""Images are twice as large as the model frame."""
ASKED = Request("1", "a.png", "the red cups")
every_head = pytest.mark.parametrize("name", sorted(HEADS))


def make(name: str, **more: object) -> tuple[ModelSettings, Grounder]:
    torch.manual_seed(0)
    settings = ModelSettings(tower=TOWER, head=HeadChoice(name=name, settings={**SETTINGS[name], **more}))
    return settings, Grounder.from_settings(settings).eval()


def two_blobs() -> torch.Tensor:
    """Mask logits of two separate things, 8 x 8 and 8 x 12 pixels of the model frame."""
    logits = torch.full((1, SIDE, SIDE), -9.0)
    logits[0, 4:12, 2:10] = 9.0
    logits[0, 16:24, 18:30] = 9.0
    return logits


def say(name: str, mask: torch.Tensor, existence: float) -> Prediction:
    """What a head makes of such a mask and such a logit of existence."""
    exists = torch.tensor([existence])
    box = torch.tensor([[0.5, 0.4375, 0.875, 0.625]])  # around both blobs
    nothing = torch.zeros(1, 16)
    outputs = {
        "cgformer": lambda: CGFormerOutput(mask, Decoded(mask[:, None], torch.zeros(1, 1, 1), (), ()), None, exists),
        "instances": lambda: one_instance(mask, box, exists),
        "oneref": lambda: OneRefOutput(
            nothing, nothing, nothing, nothing, box, mask / 9, mask, exists, (4, 4), (SIDE, SIDE)
        ),
        "rela": lambda: RelaOutput(mask, torch.zeros(1, 4), exists),
        "shared_ris": lambda: SharedRISOutput(mask, exists),
    }
    return make(name)[1].head.predict(outputs[name]())


def one_instance(mask: torch.Tensor, box: torch.Tensor, exists: torch.Tensor) -> InstancesOutput:
    """Three queries; the second is the object, the first has a low score, the third is dead."""
    seeds = find_seeds(torch.zeros(1, 4, 4), 3)
    scores = torch.tensor([[-3.0, 18.0, -20.0]])
    stage = QueryStage(scores, box.expand(1, 3, 4), torch.zeros(1, 3, 8), torch.zeros(1, 3, 16))
    return InstancesOutput(
        torch.zeros(1, 4, 4), seeds, (stage,), mask.expand(1, 3, SIDE, SIDE), mask, exists, (4, 4), (SIDE, SIDE)
    )


@every_head
def test_several_things_are_one_target_with_the_union_of_their_masks(name):
    answer = filter_targets(raw_answer(say(name, two_blobs(), 2.0), 0, FRAME, ASKED, "w"))

    (target,) = answer.targets
    assert target.box_xyxy == pytest.approx((4, 8, 60, 48), abs=1)
    assert target.score == pytest.approx(1 / (1 + np.exp(-2)))
    inside = decode_mask(target.mask)
    assert inside[16, 12]
    assert inside[40, 48]
    assert not inside[28, 28]
    assert int(inside.sum()) == pytest.approx(4 * (64 + 96), rel=0.1)
    record = json.loads(json.dumps(answer_to_json(answer)))
    assert [one["box_source"] for one in record["targets"]] == ["mask" if name in MASK_ONLY else "head"]
    assert answer_from_json(record).targets[0].mask == target.mask
    assert (" from mask  a.png" in table_line(answer)) == (name in MASK_ONLY)


@every_head
def test_below_the_existence_threshold_the_answer_is_no_target_whatever_the_mask_shows(name):
    answer = filter_targets(raw_answer(say(name, two_blobs(), -2.0), 0, FRAME, ASKED, "w"))

    record = answer_to_json(answer)
    assert (record["no_target"], record["targets"]) == (True, [])
    assert record["no_target_score"] == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-5)
    assert table_line(answer).split()[:2] == ["no", "target"]


@pytest.mark.parametrize("name", MASK_ONLY)
def test_an_empty_mask_is_no_target_even_with_a_high_existence_score(name):
    answer = filter_targets(raw_answer(say(name, torch.full((1, SIDE, SIDE), -9.0), 2.0), 0, FRAME, ASKED, "w"))
    assert (answer.no_target, answer.targets) == (True, ())


@every_head
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_whole_model_answers_by_the_threshold_that_its_settings_have(name, threshold):
    settings, grounder = make(name, existence_threshold=threshold)
    loaded = LoadedWeights(grounder, settings, Tokenizer.load(settings.text), "tiny", {})
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    answers = Predictor(loaded, precision="fp32").predict(image, ["a cup", "two red cups left of it"])

    for answer in answers:
        record = answer_to_json(answer)
        assert record["error"] is None
        assert isinstance(record["targets"], list)
        assert record["no_target"] == (record["targets"] == [])
        assert 0 < record["no_target_score"] < 1
        if threshold == 1.0:
            assert record["no_target"]
        elif name == "oneref":
            assert len(record["targets"]) == 1


def test_a_head_with_several_boxes_returns_all_of_them():
    masks = torch.full((1, 3, SIDE, SIDE), -1.0)
    boxes = torch.tensor([[[2, 2, 8, 8], [12, 4, 20, 12], [6, 20, 30, 30]]], dtype=torch.float32)
    for number, (x1, y1, x2, y2) in enumerate(boxes[0].int().tolist()):
        masks[0, number, y1:y2, x1:x2] = 1.0
    several = Prediction(boxes, torch.tensor([[0.9, 0.4, 0.7]]), masks, torch.tensor([0.8]))
    answer = filter_targets(raw_answer(several, 0, FRAME, ASKED, "w"))

    record = answer_to_json(answer)
    assert [one["box"] for one in record["targets"]] == [[4, 4, 16, 16], [24, 8, 40, 24], [12, 40, 60, 60]]
    assert [one["score"] for one in record["targets"]] == pytest.approx([0.9, 0.4, 0.7])
    assert all(one["mask"] is not None for one in record["targets"])
    assert len(table_line(answer).splitlines()) == 3
    drawing = np.asarray(draw_answer(np.zeros((64, 64, 3), np.uint8), answer)).reshape(-1, 3)
    drawn = {tuple(colour) for colour in np.unique(drawing, axis=0).tolist()}
    assert {OVERLAY_COLOURS[0], OVERLAY_COLOURS[1], OVERLAY_COLOURS[2]} <= drawn
    assert OVERLAY_COLOURS[3] not in drawn
    few = filter_targets(raw_answer(several, 0, FRAME, ASKED, "w"), min_score=0.5)
    assert [target.score for target in few.targets] == pytest.approx([0.9, 0.7])
