"""A pin keeps later pulls at the same file."""

from __future__ import annotations

import threading

import pytest
from loopback_hub import FILE, NAME, REPO, SPM, TOKENIZER, checkpoint, noise, sha256

from refcli.errors import WeightsError
from refcli.weights.locate import home, resolve
from refcli.weights.pull import Pin, lock_path, read_pins, write_pin


def test_a_pin_keeps_later_pulls_at_the_same_file(hub, pulled):
    old = hub.repositories[REPO].commit_of("main")[0]
    pulled(pin=True)
    new = hub.commit(REPO, {FILE: noise(7), SPM: TOKENIZER})

    assert read_pins()[NAME].model_dump() == {
        "repo": REPO,
        "file": FILE,
        "revision": old,
        "sha256": sha256(noise(1)),
        "num_bytes": 20_000,
    }
    assert read_pins()["beit3-tokenizer"].sha256 == sha256(TOKENIZER)
    assert (pulled(force=True) / "model.safetensors").read_bytes() == noise(1)
    with pytest.raises(WeightsError, match="checksums differ") as other:
        pulled(revision=new)
    assert sha256(noise(1)) in other.value.where
    assert sha256(noise(7)) in other.value.where
    assert "--pin" in other.value.hint
    assert resolve(NAME).joinpath("model.safetensors").read_bytes() == noise(1)
    assert (pulled(revision=new, pin=True) / "model.safetensors").read_bytes() == noise(7)
    assert (read_pins()[NAME].revision, read_pins()[NAME].sha256) == (new, sha256(noise(7)))


def test_pulled_weights_are_pinned_with_their_tokenizer(hub, pulled):
    pulled()
    num_requests = len(hub.requests)

    pulled(pin=True)

    assert len(hub.requests) == num_requests
    assert read_pins().keys() == {NAME, "beit3-tokenizer"}


def test_a_pin_of_another_commit_with_the_same_file_needs_no_later_request(hub, pulled):
    pulled()
    new = hub.commit(REPO, {FILE: noise(1), SPM: TOKENIZER})

    pulled(revision=new, pin=True)

    assert read_pins()[NAME].revision == new
    num_requests = len(hub.requests)
    pulled()
    assert len(hub.requests) == num_requests


def test_an_address_is_pinned_however_it_is_typed(hub, pulled):
    hub.commit("a/b", {"unc+/c d.pth": checkpoint(5)})
    pulled("hf://a/b/unc+/c d.pth", pin=True)
    new = hub.commit("a/b", {"unc+/c d.pth": checkpoint(6)})

    with pytest.raises(WeightsError, match="checksums differ"):
        pulled("hf://a/b/unc%2B/c%20d.pth", revision=new)


def test_pins_written_concurrently_are_all_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("REFCLI_HOME", str(tmp_path))
    pin = Pin(repo=REPO, file=FILE, revision="1" * 40, sha256="2" * 64, num_bytes=1)
    threads = [threading.Thread(target=write_pin, args=(f"name {number}", pin)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(read_pins()) == 20


def test_a_file_other_than_the_pinned_one_is_not_downloaded(hub, pulled):
    pulled(pin=True)
    new = hub.commit(REPO, {FILE: noise(7), SPM: TOKENIZER})

    with pytest.raises(WeightsError, match="checksums differ"):
        pulled(revision=new)

    assert not any(sha256(noise(7)) in request.path for request in hub.downloads())


def test_without_a_pin_the_weights_are_reported_as_unverified(hub, pulled):
    lines: list[str] = []

    pulled(report=lines.append)

    assert f"unverified: no checksum is known for {NAME}; --pin records this one ({sha256(noise(1))})" in lines


@pytest.mark.parametrize("content", ['{"weights": {"x": 3}}', '{"version": 2, "weights": {}}', "{"])
def test_a_damaged_lock_file_is_named(hub, pulled, content):
    home().mkdir()
    lock_path().write_text(content)

    with pytest.raises(WeightsError, match="lock file") as damaged:
        pulled()

    assert damaged.value.where == str(lock_path())
