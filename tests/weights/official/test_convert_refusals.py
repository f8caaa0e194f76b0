"""A checkpoint that does not fit is refused with all reasons, and nothing is written."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import refcli.text
from refcli.errors import ConfigError, ExitCode, RefcliError, UsageError, WeightsError
from refcli.weights.official import convert as converting
from refcli.weights.official.conversions.plan import KeyTableError
from refcli.weights.official.convert import convert
from refcli.weights.tensors import Mismatch

HEADS_OF_TINY = 4
BUILTIN_SPM = Path(refcli.text.__file__).with_name("builtin.spm")


def save(path, state):
    """As the original code saves its training checkpoints."""
    torch.save({"model": state, "optimizer": {}, "epoch": 9, "args": Namespace(lr=1e-4)}, path)
    return path


def drop(name):
    return lambda state: state.pop(name)


def put(name, tensor):
    return lambda state: state.update({name: tensor})


@pytest.mark.parametrize(
    ("change", "row"),
    [
        (
            drop("bbox_embed.layers.1.bias"),
            Mismatch("bbox_embed.layers.1.bias", "missing", wanted=(64,)),
        ),
        (
            drop("beit3.encoder.layers.1.self_attn.k_proj.A.weight"),
            Mismatch("beit3.encoder.layers.1.self_attn.k_proj.A.weight", "missing", wanted=(64, 64)),
        ),
        (drop("beit3.text_embed.weight"), Mismatch("beit3.text_embed.weight", "missing")),
        (put("resnet.conv1", torch.zeros(2)), Mismatch("resnet.conv1", "unexpected", (2,))),
        (
            put("beit3.encoder.layers.2.ffn.B.fc2.weight", torch.zeros(256, 64)),
            Mismatch("beit3.encoder.layers.2.ffn.B.fc2.weight", "wrong shape", (256, 64), (64, 256)),
        ),
        (
            put("beit3.encoder.embed_positions.A.weight", torch.zeros(18, 64)),
            Mismatch("beit3.encoder.embed_positions.A.weight", "wrong shape", (18, 64)),
        ),
        (
            put("beit3.vision_embed.proj.weight", torch.zeros(64, 3)),
            Mismatch("beit3.vision_embed.proj.weight", "wrong shape", (64, 3)),
        ),
        (
            put("bbox_embed.layers.1.weight", torch.ones(64, 64, dtype=torch.int64)),
            Mismatch("bbox_embed.layers.1.weight", "wrong type", "int64", "floating-point numbers"),
        ),
        (
            put("beit3.encoder.layers.0.ffn.A.fc1.weight", torch.ones(256, 64, dtype=torch.bool)),
            Mismatch("beit3.encoder.layers.0.ffn.A.fc1.weight", "wrong type", "bool", "floating-point numbers"),
        ),
        (
            put("visu_proj.bias", torch.full((64,), torch.nan)),
            Mismatch("head.pool_projection.bias", "NaN or infinity", (64,)),
        ),
    ],
)
def test_every_mismatch_is_in_the_table_and_nothing_is_written(fixtures, tmp_path, change, row):
    official = load_file(fixtures / "oneref_tiny_rec" / "weights.safetensors")
    change(official)
    path = save(tmp_path / "c.pth", official)
    with pytest.raises(KeyTableError) as caught:
        convert(path, out=tmp_path / "deep" / "w", heads=HEADS_OF_TINY)
    assert row in caught.value.rows
    assert row.name in caught.value.message
    assert caught.value.exit_code == ExitCode.INTEGRITY
    assert caught.value.where == str(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_crash_while_writing_leaves_no_files(fixtures, tmp_path, monkeypatch):
    path = save(tmp_path / "c.pth", load_file(fixtures / "oneref_tiny_rec" / "weights.safetensors"))

    def full(tensors, filename, metadata):
        Path(filename).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(converting, "save_file", full)
    with pytest.raises(RefcliError, match="cannot be written: no space left") as caught:
        convert(path, out=tmp_path / "w", heads=HEADS_OF_TINY)
    assert caught.value.where == str(tmp_path / "w")
    assert list(tmp_path.iterdir()) == [path]


def test_an_unwritable_output_path_is_named(fixtures, tmp_path, monkeypatch):
    path = save(tmp_path / "c.pth", load_file(fixtures / "oneref_tiny_rec" / "weights.safetensors"))
    with pytest.raises(RefcliError, match="cannot be written") as caught:
        convert(path, out=path / "w", heads=HEADS_OF_TINY)
    assert str(path) in caught.value.where
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UsageError, match="folder you are in"):
        convert(path, out=Path(), heads=HEADS_OF_TINY)


def test_a_link_loop_as_output_is_reported_before_anything_is_read(tmp_path):
    (tmp_path / "w").symlink_to(tmp_path / "w")
    for out in (tmp_path / "w", tmp_path / "w" / "deep"):
        with pytest.raises(RefcliError, match=r"cannot be written: .*symbolic links") as caught:
            convert(tmp_path / "never-looked-at.pth", out=out)
        assert caught.value.where == str(out)


def test_an_existing_output_directory_is_not_changed(fixtures, tmp_path):
    path = save(tmp_path / "c.pth", load_file(fixtures / "oneref_tiny_rec" / "weights.safetensors"))
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="already exists"):
        convert(path, out=tmp_path / "w", heads=HEADS_OF_TINY)
    (tmp_path / "w" / "mine.txt").unlink()
    convert(path, out=tmp_path / "w", heads=HEADS_OF_TINY)
    assert (tmp_path / "w" / "model.safetensors").is_file()


def test_settings_that_do_not_fit_the_file_are_refused(fixtures, tmp_path):
    path = save(tmp_path / "c.pth", load_file(fixtures / "oneref_tiny_rec" / "weights.safetensors"))
    for options, error, message in (
        ({"heads": 5}, UsageError, "does not divide into 5 heads"),
        ({"heads": 4, "image_size": 100}, UsageError, "not a multiple of the patch size 16"),
        ({"heads": 4, "image_size": 4112}, UsageError, "above 4096 pixels"),
        ({"heads": 4, "image_size": 1_600_000}, UsageError, "above 4096 pixels"),
        ({"heads": 4, "tokenizer": BUILTIN_SPM}, WeightsError, r"more than the tower embeds \(200\)"),
        ({"heads": 4, "tokenizer": path}, WeightsError, "not a SentencePiece model"),
        ({"heads": 4, "kind": "beit4"}, ConfigError, "no kind of checkpoint called 'beit4'"),
        ({"heads": 4, "dtype": "fp8"}, UsageError, "no dtype 'fp8'"),
        ({"heads": 4, "kind": "vqkd"}, WeightsError, "VQ-KD"),
    ):
        with pytest.raises(error, match=message):
            convert(path, out=tmp_path / "w", **options)
        assert list(tmp_path.iterdir()) == [path]


def test_a_published_tower_accepts_only_the_published_tokenizer(fixtures, tmp_path):
    official = load_file(fixtures / "oneref_tiny_rec" / "weights.safetensors")
    official["beit3.text_embed.weight"] = torch.zeros(64_010, 64)
    path = save(tmp_path / "c.pth", official)
    with pytest.raises(WeightsError, match="not the published 64,000") as caught:
        convert(path, out=tmp_path / "w", heads=HEADS_OF_TINY, tokenizer=BUILTIN_SPM)
    assert caught.value.where == str(BUILTIN_SPM)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_of_an_unknown_kind_is_named(tmp_path):
    path = save(tmp_path / "c.pth", {"resnet.conv1": torch.zeros(1)})
    with pytest.raises(WeightsError, match="of an unknown kind") as caught:
        convert(path, out=tmp_path / "w")
    assert caught.value.where == str(path)


def test_every_tensor_that_does_not_fit_a_visual_tokenizer_is_in_the_table(fixtures, tmp_path):
    official = load_file(fixtures / "vqkd_tiny" / "weights.safetensors")
    broken = {name: tensor for name, tensor in official.items() if not name.startswith("encoder.blocks.1.attn.")}
    broken["encoder.fc_norm.weight"] = torch.ones(32, dtype=torch.int64)
    path = save(tmp_path / "c.pth", broken)
    with pytest.raises(KeyTableError) as caught:
        convert(path, out=tmp_path / "w", heads=2)
    missing = official.keys() - broken.keys()
    assert len(missing) == 5
    assert set(caught.value.rows) == {
        Mismatch("encoder.fc_norm.weight", "wrong type", "int64", "floating-point numbers"),
        *(Mismatch(name, "missing", wanted=tuple(official[name].shape)) for name in missing),
    }
    assert caught.value.message.startswith("6 tensors do not fit a VQ-KD model:")
    assert caught.value.where == str(path)
