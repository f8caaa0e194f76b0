"""What every head in the table owes to the tower, the loop and the user."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from refcli.config.schema import HeadChoice, ModelSettings, TowerSettings
from refcli.contracts.batch import Batch, Regions, Targets
from refcli.contracts.prediction import Prediction
from refcli.grounder import Grounder
from refcli.heads.table import HEADS, head_class
from refcli.weights.directory import load_weights, save_weights

EVERYTHING_ON = {
    "cgformer": {
        "dim": 16,
        "pyramid_channels": [8, 12, 16, 24],
        "dropout": 0.0,  # it and the noise make training random, which some of these tests cannot have
        "noise": "never",
        "existence": True,
        "loss_weights": {"contrast": 0.1},
    },
    "instances": {"dim": 16, "mask_dim": 8, "queries": 4, "heads": 2, "ffn_dim": 32, "decoder_layers": 2},
    "oneref": {
        "res": True,
        "existence": True,
        "similarity_scale": 10.0,
        "mask_scale": 10.0,
        "mask_dim": 16,
        "mask_upsamples": 2,
        "loss_weights": {"contrast": 0.1},
    },
    "rela": {
        "dim": 16,
        "heads": 2,
        "regions": 3,
        "decoder_layers": 4,
        "decoder_ffn_dim": 32,
        "pixel_layers": 2,
        "pixel_ffn_dim": 32,
        "points": 2,
        "pyramid_channels": [8, 12, 16, 24],
    },
    "shared_ris": {"dim": 16, "heads": 2, "multiway_proj": True, "existence": True, "mask_scale": 1.0},
}
"""Every output and option that adds parameters; a new row of the table needs a row here."""
TOWER = TowerSettings(
    image_size=32,
    patch_size=8,
    dim=32,
    layers=2,
    heads=2,
    ffn_dim=64,
    vocabulary_size=648,
    drop_path=0.0,
    init="scaled",
)
MASK_TOKEN = "tower.vision_embedding.mask_token"
"""Only pre-training hides patches."""
PAD = 1

every_head = pytest.mark.parametrize("name", sorted(HEADS))


def make_grounder(name: str) -> Grounder:
    torch.manual_seed(0)
    return Grounder.from_settings(settings_of(name)).train()


def settings_of(name: str) -> ModelSettings:
    return ModelSettings(tower=TOWER, head=HeadChoice(name=name, settings=EVERYTHING_ON[name]))


def make_batch(*, exists=(True, False, True), size=(32, 32), words=6) -> Batch:
    """A rectangle of its own colour in each image; the second expression is shorter than the others."""
    torch.manual_seed(1)
    rows, columns = size
    images = 0.3 * torch.randn(3, 3, rows, columns)
    ids = torch.randint(5, 50, (3, words))
    ids[:, 0], ids[:, -1] = 0, 2
    ids[1, 2:] = torch.tensor([2] + [PAD] * (words - 3))
    there = torch.tensor(exists)
    masks = torch.zeros(3, rows, columns, dtype=torch.bool)
    boxes = torch.zeros(3, 4)
    for i in range(3):
        x1, y1, x2, y2 = 4 * i, 8, 4 * i + columns // 2, 8 + rows // 2
        images[i, i, y1:y2, x1:x2] += 2
        if exists[i]:
            masks[i, y1:y2, x1:x2] = True
            boxes[i] = torch.tensor([(x1 + x2) / 2 / columns, (y1 + y2) / 2 / rows, 0.5, 0.5])
    known = torch.tensor([True] * 3)
    regions = Regions(boxes[:, None], masks[:, None], there[:, None], known[:, None], known)
    return Batch(images, ids, ids == PAD, Targets(boxes, masks, known, there, regions), ("a", "b", "c"))


def predict(grounder: Grounder, batch: Batch, *, of=slice(None), dtype=torch.float32) -> Prediction:
    with torch.inference_mode():
        return grounder.eval().predict(batch.images[of].to(dtype), batch.token_ids[of], batch.token_is_pad[of])


def train(grounder: Grounder, batch: Batch, *, steps: int) -> list[float]:
    """The sum of the losses before each step."""
    optimizer = torch.optim.Adam(grounder.parameters(), lr=2e-3)
    course = []
    for step in range(steps):
        loss = sum(grounder(batch, step).values())
        course.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return course


def make_decided_grounder(name: str, batch: Batch) -> Grounder:
    """Fresh weights; a head that chooses places is trained first: rounding would choose between equal ones."""
    grounder = make_grounder(name)
    if name == "instances":
        train(grounder, batch, steps=40)
    return grounder


def assert_same(ours: Prediction, theirs: Prediction, *, of=slice(None)) -> None:
    for field in ("boxes_xyxy", "scores", "mask_logits", "existence"):
        mine, other = getattr(ours, field), getattr(theirs, field)
        assert (mine is None) == (other is None), field
        if mine is not None:
            torch.testing.assert_close(mine, other[of], rtol=1e-5, atol=1e-5, msg=lambda m, f=field: f"{f}: {m}")


def test_every_head_of_the_table_is_tested_here():
    assert EVERYTHING_ON.keys() == HEADS.keys()


@every_head
def test_a_negative_weight_of_a_loss_is_refused(name):
    settings = type(make_grounder(name).head).Config
    weights = settings.model_fields["loss_weights"].annotation
    for loss, field in weights.model_fields.items():
        negative = tuple(-1.0 for _ in field.default) if isinstance(field.default, tuple) else -1.0
        with pytest.raises(ValueError, match=loss):
            settings(loss_weights={loss: negative})


@every_head
@pytest.mark.parametrize("exists", [(True, True, True), (True, False, True), (False, False, False)])
def test_losses_are_finite_and_reach_every_parameter_whatever_the_batch_refers_to(name, exists):
    grounder = make_grounder(name)
    losses = grounder(make_batch(exists=exists), 0)
    assert all(loss.ndim == 0 and torch.isfinite(loss) for loss in losses.values()), losses
    sum(losses.values()).backward()
    gradients = {name: parameter.grad for name, parameter in grounder.named_parameters()}
    # A gradient of None is what DistributedDataParallel calls an unused parameter; a zero is not.
    assert {name for name, gradient in gradients.items() if gradient is None} == {MASK_TOKEN}
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values() if gradient is not None)
    if all(exists):
        assert {name for name, gradient in gradients.items() if gradient is None or not gradient.any()} == {MASK_TOKEN}


@every_head
def test_a_few_steps_on_one_batch_lower_the_loss(name):
    grounder, batch = make_grounder(name), make_batch()
    course = train(grounder, batch, steps=25)
    assert course[-1] < 0.8 * course[0]


@every_head
def test_a_prediction_keeps_its_contract(name):
    prediction = predict(make_grounder(name), make_batch())
    assert prediction.boxes_xyxy is not None or prediction.mask_logits is not None
    batch, num_targets = prediction.scores.shape
    assert batch == 3
    for outcome in (prediction.boxes_xyxy, prediction.mask_logits):
        assert outcome is None or outcome.shape[:2] == (3, num_targets)
    assert ((prediction.scores >= 0) & (prediction.scores <= 1)).all()
    assert ((prediction.existence >= 0) & (prediction.existence <= 1)).all()
    if prediction.boxes_xyxy is not None:
        assert ((prediction.boxes_xyxy >= 0) & (prediction.boxes_xyxy <= 32)).all()


@every_head
def test_a_batch_is_answered_as_its_samples_alone(name):
    grounder, batch = make_grounder(name), make_batch()
    grounder(batch, 0)  # so that running statistics are not those of a new model
    together = predict(grounder, batch)
    for sample in range(3):
        assert_same(predict(grounder, batch, of=slice(sample, sample + 1)), together, of=slice(sample, sample + 1))


@every_head
def test_padding_an_expression_changes_nothing(name):
    grounder, batch = make_grounder(name), make_batch()
    padded_ids = torch.nn.functional.pad(batch.token_ids, (0, 5), value=PAD)
    padded = replace(batch, token_ids=padded_ids, token_is_pad=padded_ids == PAD)
    assert_same(predict(grounder, padded), predict(grounder, batch))
    for name_of_loss, loss in grounder(padded, 0).items():
        torch.testing.assert_close(loss, grounder(batch, 0)[name_of_loss], rtol=1e-4, atol=1e-5)


@every_head
@pytest.mark.parametrize(("size", "words"), [((40, 24), 3), ((24, 56), 17), ((32, 40), 40), ((32, 32), 64)])
def test_any_multiple_of_the_patch_and_any_length_of_text_will_do(name, size, words):
    grounder, batch = make_grounder(name), make_batch(size=size, words=words)
    assert all(torch.isfinite(loss) for loss in grounder(batch, 0).values())
    prediction = predict(grounder, batch)
    assert torch.isfinite(prediction.scores).all()
    if prediction.mask_logits is not None:
        rows, columns = prediction.mask_logits.shape[2:]
        assert rows * size[1] == columns * size[0], "the mask covers the whole model frame"


@every_head
def test_bf16_autocast_trains_and_stays_near_fp32(name):
    batch = make_batch()
    grounder = make_decided_grounder(name, batch)
    exact = grounder(batch, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = grounder(batch, 0)
    for name_of_loss, loss in exact.items():
        torch.testing.assert_close(rounded[name_of_loss].float(), loss, rtol=0.05, atol=0.01)
    sum(loss.float() for loss in rounded.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in grounder.parameters() if p.grad is not None)


@every_head
def test_bf16_weights_answer_near_fp32(name):
    batch = make_batch()
    grounder = make_decided_grounder(name, batch)
    exact = predict(grounder, batch)
    rounded = predict(grounder.bfloat16(), batch, dtype=torch.bfloat16)
    torch.testing.assert_close(rounded.scores.float(), exact.scores, rtol=0.05, atol=0.05)
    if exact.mask_logits is not None:
        unsure = exact.mask_logits.abs() < 0.1 * exact.mask_logits.abs().max()
        assert (((rounded.mask_logits > 0) == (exact.mask_logits > 0)) | unsure).all()


@every_head
def test_saved_weights_answer_as_before(name, tmp_path):
    grounder, batch = make_grounder(name), make_batch()
    grounder(batch, 0)
    save_weights(tmp_path / "w", grounder, settings_of(name), meta={})
    loaded = load_weights(str(tmp_path / "w")).grounder
    before, after = grounder.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert_same(predict(loaded, batch), predict(grounder, batch))


@pytest.mark.compiles
@pytest.mark.slow
@every_head
def test_compiled_as_one_graph_it_computes_the_same(name):
    grounder, batch, longer = make_grounder(name), make_batch(), make_batch(words=9)
    eager = [{n: loss.detach() for n, loss in grounder(b, 0).items()} for b in (batch, longer)]
    torch._dynamo.reset()
    for part in (grounder.tower, grounder.head):
        part.compile(fullgraph=True)
    for b, expected in zip((batch, longer), eager, strict=True):
        losses = grounder(b, 0)
        for name_of_loss, loss in losses.items():
            torch.testing.assert_close(loss, expected[name_of_loss], rtol=1e-4, atol=1e-5)
        sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in grounder.parameters() if p.grad is not None)
    torch._dynamo.reset()


@every_head
def test_every_output_names_the_setting_and_the_losses_that_there_are(name):
    head = head_class(name)
    config = head.Config()
    for output in head.OUTPUTS.values():
        assert output.losses and set(output.losses) <= type(config.loss_weights).model_fields.keys()
        if output.switch is not None:
            assert isinstance(getattr(config, output.switch), bool)
    assert set(head.OUTPUTS) >= {"mask", "existence"}
