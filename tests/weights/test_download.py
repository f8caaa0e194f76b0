"""Published weights are pulled, checked against pins, converted, and put in place whole."""

from __future__ import annotations

import hashlib
import io
import json
import random
import threading
from argparse import Namespace
from pathlib import Path

import pytest

from refcli.errors import UsageError, WeightsError
from refcli.weights.catalog import find
from refcli.weights.download import pull, read_origin
from refcli.weights.locate import home, resolve
from refcli.weights.pins import lock_path, read_pins

REPO, MIRROR = "linhuixiao/OneRef", "xiaolinhui/OneRef"
NAME, FILE = "oneref-large-rec-refcoco", "rec_single_dataset_finetuning_large_unc.pth"
ZIPPED, ZIP = "oneref-base-rec-refcoco", "rec_single_dataset_finetuning_base.zip"
SPM = "beit3_checkpoints/beit3.spm"


def noise(seed: int, size: int = 20_000) -> bytes:
    return random.Random(seed).randbytes(size)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def left_behind() -> list[str]:
    """What lies in REFCLI_HOME/weights, apart from lock files."""
    return sorted(path.name for path in (home() / "weights").iterdir() if path.suffix != ".lock")


def test_a_name_becomes_a_directory_with_model_tokenizer_and_origin(hub, pulled):
    directory = pulled()

    assert directory == home() / "weights" / NAME == resolve(NAME)
    assert (directory / "model.safetensors").read_bytes() == noise(1)
    assert (directory / "tokenizer.spm").read_bytes() == noise(2, 500)
    meta = json.loads((directory / "meta.json").read_text())
    assert meta["kind"] == "oneref"
    assert meta["origin"] == {
        "name": NAME,
        "repo": REPO,
        "file": FILE,
        "member": None,
        "revision": hub.repositories[REPO].commit_of("main")[0],
        "sha256": sha256(noise(1)),
        "num_bytes": 20_000,
        "licence": "Apache-2.0 is what their code repository says; a licence of the weights themselves was not seen",
    }


def test_what_is_there_is_used_again_without_asking_the_hub(hub, pulled):
    pulled()
    num_requests = len(hub.requests)
    said: list[str] = []

    pulled(say=said.append)

    assert len(hub.requests) == num_requests
    assert any("already here" in line for line in said)


def test_another_branch_with_the_same_file_is_not_converted_again(hub, pulled):
    pulled()

    def refuse(*arguments, **options):
        raise AssertionError("converted again")

    pull(NAME, revision="main", convert=refuse)

    assert len([request for request in hub.downloads() if sha256(noise(1)) in request.path]) == 1


def test_force_fetches_and_converts_again(hub, pulled):
    (pulled() / "model.safetensors").write_bytes(b"spoilt")

    assert (pulled(force=True) / "model.safetensors").read_bytes() == noise(1)
    assert len([request for request in hub.downloads() if sha256(noise(1)) in request.path]) == 2


def test_a_pin_keeps_later_pulls_at_the_same_file(hub, pulled):
    old = hub.repositories[REPO].commit_of("main")[0]
    pulled(pin=True)
    new = hub.commit(REPO, {FILE: noise(7), SPM: noise(2, 500)})

    assert read_pins()[NAME].model_dump() == {
        "repo": REPO,
        "file": FILE,
        "revision": old,
        "sha256": sha256(noise(1)),
        "num_bytes": 20_000,
    }
    assert read_pins()["beit3-tokenizer"].sha256 == sha256(noise(2, 500))
    assert (pulled(force=True) / "model.safetensors").read_bytes() == noise(1)
    with pytest.raises(WeightsError, match="checksums differ") as other:
        pulled(revision=new)
    assert sha256(noise(1)) in other.value.where
    assert sha256(noise(7)) in other.value.where
    assert "--pin" in other.value.hint
    assert resolve(NAME).joinpath("model.safetensors").read_bytes() == noise(1)
    assert (pulled(revision=new, pin=True) / "model.safetensors").read_bytes() == noise(7)
    assert (read_pins()[NAME].revision, read_pins()[NAME].sha256) == (new, sha256(noise(7)))


def test_a_file_that_is_not_the_pinned_one_is_not_even_downloaded(hub, pulled):
    pulled(pin=True)
    new = hub.commit(REPO, {FILE: noise(7), SPM: noise(2, 500)})

    with pytest.raises(WeightsError, match="checksums differ"):
        pulled(revision=new)

    assert not any(sha256(noise(7)) in request.path for request in hub.downloads())


def test_who_has_not_pinned_is_told_that_nothing_was_verified(hub, pulled):
    said: list[str] = []

    pulled(say=said.append)

    assert f"unverified: no checksum is known for {NAME}; --pin keeps this one ({sha256(noise(1))})" in said


def test_a_damaged_lock_file_is_named(hub, pulled):
    home().mkdir()
    lock_path().write_text('{"weights": {"x": 3}}')

    with pytest.raises(WeightsError, match="lock file") as damaged:
        pulled()

    assert damaged.value.where == str(lock_path())


def test_the_second_repository_is_tried_when_the_first_has_nothing(hub, pulled):
    hub.commit(MIRROR, hub.repositories.pop(REPO).commits[0])

    assert read_origin(pulled())["repo"] == MIRROR


def test_a_file_that_is_nowhere_is_an_error_about_the_first_repository(hub, pulled):
    with pytest.raises(WeightsError, match="has no file") as missing:
        pulled("oneref-large-rec-flickr30k")

    assert missing.value.message == f"{REPO} has no file 'rec_single_dataset_finetuning_large_flickr.pth'"
    assert missing.value.hint == f"see {hub.url}/{REPO}/tree/main"


def test_a_conversion_that_fails_leaves_nothing_and_the_old_directory_stands(hub, pulled):
    pulled()

    def fail(path, *, out, **options):
        out.mkdir()
        (out / "model.safetensors").write_bytes(b"half")
        raise WeightsError("these are no weights")

    with pytest.raises(WeightsError, match="no weights"):
        pull(NAME, force=True, convert=fail)

    assert left_behind() == [NAME]
    assert (resolve(NAME) / "model.safetensors").read_bytes() == noise(1)


def test_two_pulls_at_once_download_once(hub, pulled):
    hub.stall_after = None
    directories: list[Path] = []
    threads = [threading.Thread(target=lambda: directories.append(pulled())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert directories == [home() / "weights" / NAME] * 2
    assert len([request for request in hub.downloads() if sha256(noise(1)) in request.path]) == 1


def test_an_address_with_a_revision_and_percent_signs_is_pulled(hub, pulled):
    commit = hub.commit("someone/models.v2", {"unc+ final/a.pth": noise(5)})
    address = f"hf://someone/models.v2@{commit}/unc%2B%20final/a.pth"

    directory = pulled(address)

    assert (directory / "model.safetensors").read_bytes() == noise(5)
    assert json.loads((directory / "meta.json").read_text())["kind"] == "auto"
    assert read_origin(directory)["file"] == "unc+ final/a.pth"
    assert resolve(address) == directory
    assert (directory / "tokenizer.spm").is_file()


def test_two_different_revisions_are_a_usage_error(hub, pulled):
    with pytest.raises(UsageError, match="two revisions"):
        pulled("hf://a/b@v1/c.pth", revision="v2")


def test_there_is_nothing_to_pull_for_the_packaged_model(hub, pulled):
    with pytest.raises(UsageError, match="inside refcli"):
        pulled("builtin")


def test_the_names_used_here_are_those_of_the_catalogue():
    assert (find(NAME).file, find(ZIPPED).file, find("beit3-tokenizer").file) == (FILE, ZIP, SPM)


def test_a_pulled_checkpoint_is_a_model_that_reads_expressions(hub, fixtures, monkeypatch):
    import torch
    from safetensors.torch import load_file

    from refcli.text import tokenizer
    from refcli.weights.load import load_weights

    spm = (Path(tokenizer.__file__).parent / "builtin.spm").read_bytes()
    monkeypatch.setattr(tokenizer, "OFFICIAL_NUM_PIECES", tokenizer.Tokenizer(spm, max_tokens=8).num_pieces)
    state = load_file(fixtures / "oneref_tiny_rec" / "weights.safetensors")
    state["beit3.text_embed.weight"] = torch.zeros(700, 64)
    checkpoint = io.BytesIO()
    torch.save({"model": state, "epoch": 3, "args": Namespace(use_regress_box=True)}, checkpoint)
    hub.commit(REPO, {FILE: checkpoint.getvalue(), SPM: spm})

    directory = pull(NAME)

    loaded = load_weights(str(directory))
    assert loaded.name == NAME
    assert loaded.tokenizer.model == spm
    assert loaded.meta["origin"]["sha256"] == sha256(checkpoint.getvalue()) == loaded.meta["source"]["sha256"]
    projection = loaded.grounder.state_dict()["tower.vision_embedding.projection.weight"]
    assert torch.equal(projection, state["beit3.vision_embed.proj.weight"])
