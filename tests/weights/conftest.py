"""A hub on loopback that huggingface_hub takes for the real one, and a small tokenizer file."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path

import pytest
import sentencepiece

from refcli.weights import hub as hub_client
from refcli.weights.download import pull


@pytest.fixture(scope="session")
def spm(tmp_path_factory) -> Path:
    """A SentencePiece file small enough for the 200 words of the tiny models."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the red star is left of the blue ring"] * 50),
        model_writer=model,
        vocab_size=30,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("spm") / "small.spm"
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="session")
def server():
    """The module `hub.py`, which is no test module and in no package."""
    spec = importlib.util.spec_from_file_location("hub", Path(__file__).with_name("hub.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules["hub"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["hub"]


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """A hub with one large model and the tokenizer; nothing in the cache and in REFCLI_HOME yet."""
    from huggingface_hub import constants

    with server.running() as hub:
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", server.CHUNK)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        monkeypatch.setattr(hub_client, "SPARE_BYTES", 0)
        monkeypatch.setenv("REFCLI_HOME", str(tmp_path / "home"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        hub.commit(server.REPO, {server.FILE: server.noise(1), server.SPM: server.noise(2, 500)})
        yield hub


@pytest.fixture
def pulled(server):
    """`pull` with a stand-in for the conversion; the large model unless another name is given."""

    def pulled(name: str = "oneref-large-rec-refcoco", **options) -> Path:
        return pull(name, convert=server.converted, **options)

    return pulled
