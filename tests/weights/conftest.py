"""A local server that replaces the Hub for huggingface_hub, and a small tokenizer file."""

from __future__ import annotations

from pathlib import Path

import loopback_hub
import pytest
from small_tokenizer import write_small_tokenizer

from refcli.weights import hub as hub_client
from refcli.weights.pull import pull


@pytest.fixture(scope="session")
def spm(tmp_path_factory) -> Path:
    """A SentencePiece file small enough for the 200 ids of the tiny models."""
    return write_small_tokenizer(tmp_path_factory.mktemp("spm") / "small.spm")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A local Hub with one large model and the tokenizer; the cache and REFCLI_HOME are empty."""
    from huggingface_hub import constants

    with loopback_hub.running() as hub:
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", loopback_hub.CHUNK)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        monkeypatch.setattr(hub_client, "SPARE_BYTES", 0)
        monkeypatch.setenv("REFCLI_HOME", str(tmp_path / "home"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        hub.commit(
            loopback_hub.REPO, {loopback_hub.FILE: loopback_hub.noise(1), loopback_hub.SPM: loopback_hub.TOKENIZER}
        )
        yield hub


@pytest.fixture
def pulled():
    """`pull` with a fake conversion; pulls the large model by default."""

    def pulled(name: str = "oneref-large-rec-refcoco", **options) -> Path:
        return pull(name, convert=loopback_hub.converted, **options)

    return pulled
