"""The commands on weights use or refuse a pulled tokenizer."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from loopback_hub import REPO, SPM, sentencepiece_file
from safetensors.torch import load_file

from refcli.errors import UsageError, WeightsError
from refcli.recipes.weights import convert_weights, verify_weights
from refcli.weights.locate import pulled_directory


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("REFCLI_HOME", str(tmp_path / "home"))


def pulled_tokenizer(content: bytes) -> Path:
    """The directory of a tokenizer as `pull` leaves it."""
    directory = pulled_directory("beit3-tokenizer")
    directory.mkdir(parents=True)
    (directory / "beit3.spm").write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    origin = {"repo": REPO, "file": SPM, "revision": "1" * 40, "sha256": sha256, "num_bytes": len(content)}
    origin |= {"member": None, "tokenizer": None}
    meta = {"kind": "tokenizer", "files": {"beit3.spm": sha256}, "origin": origin}
    (directory / "meta.json").write_text(json.dumps(meta))
    return directory


def test_a_pulled_tokenizer_that_does_not_fit_is_not_used_and_a_given_one_is_an_error(tmp_path, fixtures):
    state = load_file(fixtures / "oneref_tiny_rec" / "weights.safetensors")
    torch.save({"model": state}, tmp_path / "c.pth")
    tokenizer = pulled_tokenizer(sentencepiece_file(64_000)) / "beit3.spm"

    report = convert_weights(tmp_path / "c.pth", out=tmp_path / "out", heads=4)

    assert report.notes[-1].startswith("the pulled tokenizer is not used: the tokenizer has 64,002 ids, more than")
    assert report.needs_tokenizer
    assert not (tmp_path / "out" / "tokenizer.spm").exists()
    with pytest.raises(WeightsError, match="more than the tower embeds"):
        convert_weights(tmp_path / "c.pth", out=tmp_path / "other", heads=4, tokenizer=tokenizer)
    assert not (tmp_path / "other").exists()


def test_a_pulled_tokenizer_that_fits_is_added_to_the_model(tmp_path, fixtures):
    state = load_file(fixtures / "oneref_tiny_rec" / "weights.safetensors")
    state["beit3.text_embed.weight"] = torch.zeros(64_010, 64)
    torch.save({"model": state}, tmp_path / "c.pth")
    tokenizer = pulled_tokenizer(sentencepiece_file(64_000)) / "beit3.spm"

    report = convert_weights(tmp_path / "c.pth", out=tmp_path / "out", heads=4)

    assert not any("left out" in note for note in report.notes)
    assert (tmp_path / "out" / "tokenizer.spm").read_bytes() == tokenizer.read_bytes()


def test_verify_checks_a_pulled_tokenizer_by_its_name_and_by_its_directory():
    with pytest.raises(UsageError, match="a tokenizer, not a model"):
        verify_weights("beit3-tokenizer")
    directory = pulled_tokenizer(sentencepiece_file(64_000))

    assert verify_weights("beit3-tokenizer") == verify_weights(str(directory)) == (directory, [])

    (directory / "beit3.spm").write_bytes(sentencepiece_file(64_000, num_unused=5))
    (problem,) = verify_weights("beit3-tokenizer")[1]
    assert "beit3.spm is not the file that was pulled" in problem
    (directory / "beit3.spm").write_bytes(b"import os")
    (directory / "meta.json").unlink()
    assert verify_weights("beit3-tokenizer")[1] == [
        "meta.json does not state the origin of beit3.spm",
        "this is not a SentencePiece model",
    ]
