"""Official checkpoints become weights directories whose models compute what the official code computes."""

import json
from argparse import Namespace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from refcli.config.pretraining import VisualTokenizerSettings
from refcli.errors import UsageError, WeightsError
from refcli.files import file_sha256
from refcli.model.beit3 import OneTower
from refcli.model.visual_tokenizer import VisualTokenizer
from refcli.weights.directory import load_weights
from refcli.weights.layout import PRETRAINING_HEADS_FILE, TowerOnlySettings
from refcli.weights.official.conversions.oneref import from_official, to_official
from refcli.weights.official.conversions.plan import heads_note
from refcli.weights.official.convert import convert, detect_kind

HEADS_OF_TINY = 4
"""The tiny models have attention heads of 16 channels; no shape shows it."""
ROWS, OUTPUTS = 2e-5, 5e-6


@pytest.fixture(autouse=True)
def nothing_pulled(tmp_path, monkeypatch):
    monkeypatch.setenv("REFCLI_HOME", str(tmp_path / "home"))


def save(path, state, **args):
    """As the original code saves its training checkpoints."""
    optimizer = {"state": {0: {"exp_avg": torch.ones(4)}}, "param_groups": []}
    content = {"model": state, "optimizer": optimizer, "epoch": 9, "args": Namespace(**args), "val_accu": 0.5}
    torch.save(content, path)
    return path


def close(ours, theirs, atol):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("name", ["rec", "res"])
def test_a_converted_checkpoint_answers_as_the_official_code(fixtures, tmp_path, spm, name):
    folder = fixtures / f"oneref_tiny_{name}"
    args = {"use_regress_box": True, "use_mask_loss": name == "res", "max_query_len": 16}
    path = save(tmp_path / "best_checkpoint.pth", load_file(folder / "weights.safetensors"), **args)
    report = convert(path, out=tmp_path / "w", heads=HEADS_OF_TINY, tokenizer=spm)
    loaded, expected = load_weights(str(tmp_path / "w")), load_file(folder / "io.safetensors")
    with torch.no_grad():
        features = loaded.grounder.tower(expected["images"], expected["token_ids"], expected["padding_mask"].bool())
        output = loaded.grounder.head(features)
    close(output.boxes_cxcywh, expected["pred_box"], OUTPUTS)
    close(output.similarity, expected["visu_token_similarity"], OUTPUTS)
    close(output.vision_class, expected["vision_cls"], OUTPUTS)
    close(output.language_class, expected["language_cls"], OUTPUTS)
    if name == "res":
        close(output.mask_cosine, expected["seg_mask"][:, 0], OUTPUTS)
    assert report.kind == "oneref"
    assert report.tasks == (("box", "mask") if name == "res" else ("box",))
    assert report.num_parameters == sum(p.numel() for p in loaded.grounder.parameters())
    assert loaded.settings.text.max_tokens == 16
    assert loaded.settings.tower.image_size == (64, 64)


def test_a_pretrained_checkpoint_keeps_its_heads_and_computes_the_official_rows(fixtures, tmp_path, spm):
    folder = fixtures / "oneref_tiny_mrefm"
    official, expected = load_file(folder / "weights.safetensors"), load_file(folder / "io.safetensors")
    path = save(tmp_path / "c.pth", official, enable_mrefm=True, enable_mim_vts=True)
    report = convert(path, out=tmp_path / "w", heads=HEADS_OF_TINY, tokenizer=spm)
    assert report.tasks == ()
    assert any("fine-tune it before use" in note for note in report.notes)
    apart = load_file(tmp_path / "w" / PRETRAINING_HEADS_FILE)
    assert {name.split(".")[0] for name in apart} == {"mim_head", "mim_vts_head", "mlm_head", "mlm_sts_head"}
    assert all(torch.equal(apart[name], official[name]) for name in apart)
    grounder = load_weights(str(tmp_path / "w")).grounder
    is_pad = expected["padding_mask"].bool()
    real = torch.cat([torch.ones(4, 17, dtype=torch.bool), ~is_pad], 1)
    for case, ids, masked in (
        ("mim", expected["token_ids"], expected["mim_masked_pos"].bool()),
        ("mlm", expected["masked_token_ids"], None),
    ):
        with torch.no_grad():
            features = grounder.tower(expected["images"], ids, is_pad, patch_is_masked=masked)
            output = grounder.head(features)
        close(torch.cat([features.vision, features.text], 1)[real], expected[f"{case}.encoder_out"][real], ROWS)
        close(output.boxes_cxcywh, expected[f"{case}.pred_box"], OUTPUTS)
        close(output.similarity, expected[f"{case}.visu_token_similarity"], OUTPUTS)


def test_a_mask_model_without_a_trained_box_head_answers_with_masks_only(fixtures, tmp_path, spm):
    official = load_file(fixtures / "oneref_tiny_res" / "weights.safetensors")
    path = save(tmp_path / "c.pth", official, use_mask_loss=True, use_regress_box=False)
    report = convert(path, out=tmp_path / "w", heads=HEADS_OF_TINY, tokenizer=spm)
    loaded = load_weights(str(tmp_path / "w"))
    assert report.tasks == ("mask",)
    assert loaded.settings.head.settings["rec"] is False
    box_head = {name for name in official if name.startswith(("visu_proj", "bbox_embed"))}
    assert set(report.dropped) >= box_head
    assert all("not trained" in report.dropped[name] for name in box_head)


def test_a_pretrained_checkpoint_with_a_mask_head_is_trained_for_nothing_yet(fixtures, tmp_path, spm):
    official = load_file(fixtures / "oneref_tiny_mrefm" / "weights.safetensors")
    masks = load_file(fixtures / "oneref_tiny_res" / "weights.safetensors")
    official |= {name: masks[name] for name in masks if name.startswith(("seg_conv", "bn"))}
    path = save(tmp_path / "c.pth", official, enable_mrefm=True, use_mask_loss=True)
    report = convert(path, out=tmp_path / "w", heads=HEADS_OF_TINY, tokenizer=spm)
    assert report.tasks == ()
    assert any("fine-tune it before use" in note for note in report.notes)
    settings = load_weights(str(tmp_path / "w")).settings.head.settings
    assert (settings["rec"], settings["res"]) == (False, True)
    assert sorted([*report.names, *report.kept_apart, *report.dropped]) == sorted([*official, "optimizer", "val_accu"])


def test_the_report_accounts_for_every_tensor_and_names_the_source(fixtures, tmp_path):
    official = load_file(fixtures / "oneref_tiny_mrefm" / "weights.safetensors")
    path = save(tmp_path / "c.pth", official, enable_mim_vts=False, lr=1e-4)
    convert(path, out=tmp_path / "w", heads=HEADS_OF_TINY, origin={"licence": "MIT"})
    meta = json.loads((tmp_path / "w" / "meta.json").read_text())
    keys = meta["keys"]
    assert sorted([*keys["converted"], *keys["kept_apart"], *keys["dropped"]]) == sorted(
        [*official, "optimizer", "val_accu"]
    )
    assert set(keys["converted"].values()) == load_file(tmp_path / "w" / "model.safetensors").keys()
    assert meta["source"] == {
        "file": "c.pth",
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
        "epoch": 9,
        "args": {"enable_mim_vts": False, "lr": 1e-4},
    }
    assert meta["origin"] == {"licence": "MIT"}
    assert meta["files"] == {
        name: file_sha256(tmp_path / "w" / name)
        for name in ("config.yaml", "model.safetensors", PRETRAINING_HEADS_FILE)
    }


@pytest.mark.parametrize("name", ["rec", "res"])
def test_renaming_to_the_official_names_and_back_changes_nothing(fixtures, name):
    official = load_file(fixtures / f"oneref_tiny_{name}" / "weights.safetensors")
    ours = from_official(official)
    back = to_official(ours.state)
    assert back.keys() == official.keys() - set(ours.left_out)
    assert all(torch.equal(back[key], official[key]) for key in back)
    again = from_official(back).state
    assert again.keys() == ours.state.keys()
    assert all(torch.equal(again[key], ours.state[key]) for key in again)


def test_a_tensor_unknown_to_the_official_model_cannot_be_written_in_its_layout():
    with pytest.raises(WeightsError, match=r"no place in the official model: head\.existence\.0\.weight"):
        to_official({"head.existence.0.weight": torch.zeros(1)})


def published_beit3(fixtures):
    """A half-precision tower with its pretraining heads, as BEiT-3 is published."""
    official = load_file(fixtures / "oneref_tiny_rec" / "weights.safetensors")
    tower = {name: tensor.half() for name, tensor in official.items() if name.startswith("beit3.")}
    heads = {"mlm_head.weight": torch.ones(200, 64), "mlm_head.bias": torch.ones(200), "mim_head.bias": torch.ones(32)}
    return tower | {name: tensor.half() for name, tensor in heads.items()}


def test_a_beit3_file_becomes_a_tower_without_a_head(fixtures, tmp_path):
    official = published_beit3(fixtures)
    torch.save({"model": official}, tmp_path / "c.pth")
    report = convert(tmp_path / "c.pth", out=tmp_path / "w", heads=HEADS_OF_TINY)
    assert (report.kind, report.tasks) == ("beit3", ())
    assert report.kept_apart == ("mim_head.bias", "mlm_head.bias", "mlm_head.weight")
    settings = TowerOnlySettings.model_validate(yaml.safe_load((tmp_path / "w" / "config.yaml").read_text()))
    state = load_file(tmp_path / "w" / "model.safetensors")
    OneTower(settings.tower).load_state_dict({k.removeprefix("tower."): t for k, t in state.items()}, strict=True)
    words = official["beit3.text_embed.weight"]
    assert torch.equal(state["tower.text_embedding.words.weight"], words.float())
    assert settings.text.tokenizer == "beit3.spm"


def test_a_vqkd_file_becomes_a_visual_tokenizer(fixtures, tmp_path, spm):
    folder = fixtures / "vqkd_tiny"
    torch.save({"model": load_file(folder / "weights.safetensors")}, tmp_path / "c.pth")
    report = convert(tmp_path / "c.pth", out=tmp_path / "w", heads=2, tokenizer=spm)
    assert report.kind == "vqkd"
    assert not report.needs_tokenizer
    assert "it reads no text: the tokenizer is not used" in report.notes
    assert not (tmp_path / "w" / "tokenizer.spm").exists()
    assert report.names["encoder.pos_embed"] == "embedding.positions"
    settings = VisualTokenizerSettings.model_validate(yaml.safe_load((tmp_path / "w" / "config.yaml").read_text()))
    tokenizer = VisualTokenizer(settings)
    tokenizer.load_state_dict(load_file(tmp_path / "w" / "model.safetensors"), strict=True)
    expected = load_file(folder / "io.safetensors")
    assert torch.equal(tokenizer.eval().code_ids(expected["native.image"]), expected["native.indices"])
    with pytest.raises(UsageError, match="no image size to change"):
        convert(tmp_path / "c.pth", out=tmp_path / "other", heads=2, image_size=96)


@pytest.mark.parametrize("name", ["rec", "half"])
def test_positions_are_resampled_in_single_precision_as_the_official_start_does(fixtures, tmp_path, name):
    oracle = load_file(fixtures / "pos_interp" / "table.safetensors")
    official = load_file(fixtures / "oneref_tiny_rec" / "weights.safetensors")
    positions = oracle["4to6.before"].repeat(1, 4)  # the tower is four times as wide as the oracle's table
    official["beit3.encoder.embed_positions.A.weight"] = positions
    if name == "half":
        official = {key: tensor.half() for key, tensor in official.items()}
    report = convert(
        save(tmp_path / "c.pth", official), out=tmp_path / "w", heads=HEADS_OF_TINY, image_size=96, dtype="fp32"
    )
    ours = load_file(tmp_path / "w" / "model.safetensors")["tower.vision_embedding.positions"]
    assert ours.dtype == torch.float32
    close(ours, oracle["4to6.after"].repeat(1, 4), 1e-6 if name == "rec" else 2e-3)
    if name == "half":
        assert not torch.equal(ours[3:], ours[3:].half().float()), "resampled values must not be rounded to half"
    assert yaml.safe_load((tmp_path / "w" / "config.yaml").read_text())["tower"]["image_size"] == [96, 96]
    assert "vision positions resampled from (4, 4) to (6, 6) patches" in report.notes


@pytest.mark.parametrize(
    ("dtype", "stored"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("keep", torch.float16)]
)
def test_numbers_are_stored_in_the_requested_type(fixtures, tmp_path, dtype, stored):
    torch.save({"model": published_beit3(fixtures)}, tmp_path / "c.pth")
    convert(tmp_path / "c.pth", out=tmp_path / "w", heads=HEADS_OF_TINY, dtype=dtype)
    for file in ("model.safetensors", PRETRAINING_HEADS_FILE):
        assert {tensor.dtype for tensor in load_file(tmp_path / "w" / file).values()} == {stored}


def test_loading_a_model_without_its_tokenizer_names_the_missing_file(fixtures, tmp_path):
    path = save(tmp_path / "c.pth", load_file(fixtures / "oneref_tiny_rec" / "weights.safetensors"))
    assert convert(path, out=tmp_path / "w", heads=HEADS_OF_TINY).needs_tokenizer
    with pytest.raises(WeightsError, match="tokenizer file is missing") as caught:
        load_weights(str(tmp_path / "w"))
    assert caught.value.where == str(tmp_path / "w" / "beit3.spm")


def test_assumed_attention_heads_are_reported(fixtures, tmp_path):
    path = save(tmp_path / "c.pth", load_file(fixtures / "oneref_tiny_rec" / "weights.safetensors"))
    guess = "assumed: attention heads of 64 channels, 1 in all; else give --heads"
    assert guess in convert(path, out=tmp_path / "guessed").notes
    assert guess not in convert(path, out=tmp_path / "given", heads=HEADS_OF_TINY).notes
    assert heads_note(768, None) == heads_note(1024, None) == ()


def test_the_kind_is_detected_from_the_names():
    one = torch.zeros(1)
    assert detect_kind({"beit3.text_embed.weight": one, "bbox_embed.layers.0.bias": one}) == "oneref"
    assert detect_kind({"beit3.text_embed.weight": one, "mlm_head.bias": one, "language_head.weight": one}) == "beit3"
    assert detect_kind({"quantize.embedding.weight": one, "encoder.cls_token": one}) == "vqkd"
    assert detect_kind({"decoder.tokens.weight": one, "backbone.norm0.weight": one}) == "cgformer"
    assert detect_kind({"sem_seg_head.predictor.query_feat.weight": one}) == "rela"
    with pytest.raises(WeightsError, match="of an unknown kind"):
        detect_kind({"resnet.conv1": one})
