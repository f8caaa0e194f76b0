"""Published weights are pulled, verified, converted, and put in place complete."""

from __future__ import annotations

import io
import json
import threading
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from loopback_hub import (
    FILE,
    MIRROR,
    NAME,
    REPO,
    SPM,
    TOKENIZER,
    ZIP,
    ZIPPED,
    checkpoint,
    left_behind,
    noise,
    sentencepiece_file,
    sha256,
)
from safetensors.torch import load_file, save

from refcli.errors import DownloadError, ExitCode, RefcliError, UsageError, WeightsError
from refcli.weights.catalog import Catalog
from refcli.weights.locate import home, resolve
from refcli.weights.pull import pull, read_origin


def test_a_name_becomes_a_directory_with_model_tokenizer_and_origin(hub, pulled):
    directory = pulled()

    assert directory == home() / "weights" / NAME == resolve(NAME)
    assert (directory / "model.safetensors").read_bytes() == noise(1)
    assert (directory / "tokenizer.spm").read_bytes() == TOKENIZER
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
        "tokenizer": {
            "repo": REPO,
            "file": SPM,
            "revision": hub.repositories[REPO].commit_of("main")[0],
            "sha256": sha256(TOKENIZER),
            "num_bytes": len(TOKENIZER),
        },
    }


def test_pulled_weights_are_reused_without_asking_the_hub(hub, pulled):
    pulled()
    num_requests = len(hub.requests)
    lines: list[str] = []

    pulled(report=lines.append)

    assert len(hub.requests) == num_requests
    assert any("already pulled" in line for line in lines)


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


def test_the_second_repository_is_tried_if_the_first_lacks_the_file(hub, pulled):
    hub.commit(MIRROR, hub.repositories.pop(REPO).commits[0])

    assert read_origin(pulled())["repo"] == MIRROR


def test_a_file_missing_everywhere_is_an_error_about_the_first_repository(hub, pulled):
    with pytest.raises(DownloadError, match="has no file") as missing:
        pulled("oneref-large-rec-flickr30k")

    assert missing.value.message == f"{REPO} has no file 'rec_single_dataset_finetuning_large_flickr.pth'"
    assert missing.value.hint == f"see {hub.url}/{REPO}/tree/main"


def test_a_failed_conversion_leaves_no_files_and_keeps_the_old_directory(hub, pulled):
    pulled()

    def fail(path, *, out, **options):
        out.mkdir()
        (out / "model.safetensors").write_bytes(b"half")
        raise WeightsError("these are no weights")

    with pytest.raises(WeightsError, match="no weights"):
        pull(NAME, force=True, convert=fail)

    assert left_behind() == [NAME]
    assert (resolve(NAME) / "model.safetensors").read_bytes() == noise(1)


def test_temporary_files_of_a_killed_pull_are_removed(hub, pulled):
    half = home() / "weights" / f".{NAME}.new"
    half.mkdir(parents=True)
    (half / "checkpoint.pth").write_bytes(noise(8))

    pulled()

    assert left_behind() == [NAME]


def test_a_checkpoint_that_does_not_fit_is_named_by_its_address(hub, pulled):
    def refuse(path, **options):
        raise WeightsError("these are no weights", where=str(path))

    with pytest.raises(WeightsError) as refused:
        pull(NAME, convert=refuse)

    assert refused.value.where.startswith(f"hf://{REPO}/{FILE} (")


def test_a_home_that_is_not_a_folder_is_named(hub, pulled, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("REFCLI_HOME", str(tmp_path / "file"))

    with pytest.raises(RefcliError, match="cannot be written") as problem:
        pulled()

    assert str(tmp_path / "file") in problem.value.where


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"import os; os.system('echo')\n", "not a SentencePiece model"),
        (sentencepiece_file(63_999), "must have 64,000 pieces, this one has 63,999"),
    ],
)
def test_a_file_that_is_not_the_official_tokenizer_is_refused(hub, pulled, content, message):
    hub.commit(REPO, {SPM: content})

    with pytest.raises(WeightsError, match=message) as refused:
        pulled("beit3-tokenizer")

    assert refused.value.where.startswith(f"hf://{REPO}/{SPM} (")
    assert refused.value.exit_code == ExitCode.INTEGRITY
    assert left_behind() == []


def test_a_file_that_reads_no_text_needs_no_tokenizer(hub, pulled, fixtures):
    content = io.BytesIO()
    torch.save({"model": load_file(fixtures / "vqkd_tiny" / "weights.safetensors")}, content)
    hub.repositories.pop(REPO)
    hub.commit("me/models", {"vqkd.pth": content.getvalue()})

    directory = pulled("hf://me/models/vqkd.pth")

    assert json.loads((directory / "meta.json").read_text())["kind"] == "vqkd"
    assert read_origin(directory)["tokenizer"] is None
    assert not any("OneRef" in request.path for request in hub.requests)


def test_a_state_dict_as_safetensors_is_pulled_like_any_other(hub, pulled):
    content = save({"beit3.noise": torch.zeros(3)})
    hub.commit("me/models", {"tower.safetensors": content})

    directory = pulled("hf://me/models/tower.safetensors")

    assert json.loads((directory / "meta.json").read_text())["kind"] == "beit3"
    assert (directory / "model.safetensors").read_bytes() == content


def test_a_failed_download_of_the_tokenizer_is_reported_as_such(hub, pulled):
    hub.repositories.pop(REPO)
    hub.commit("me/models", {"tower.pth": checkpoint(5)})

    with pytest.raises(
        DownloadError, match=rf"tokenizer .* cannot be fetched: there is no repository {REPO}"
    ) as missing:
        pulled("hf://me/models/tower.pth")

    assert missing.value.where == f"hf://{REPO}/{SPM}"
    assert left_behind() == []


def test_an_address_of_a_file_that_is_not_a_checkpoint_is_named(hub, pulled):
    hub.commit("me/models", {"page.pth": b"<!DOCTYPE html>", "other.pth": save({"resnet.conv1": torch.zeros(3)})})

    for file, message in (("page.pth", "not a PyTorch checkpoint"), ("other.pth", "of an unknown kind")):
        with pytest.raises(WeightsError, match=message) as refused:
            pulled(f"hf://me/models/{file}")
        assert refused.value.where.startswith(f"hf://me/models/{file} (")


@pytest.mark.parametrize("content", ["[]", "{", '{"origin": {}, "files": {}}', '{"kind": 3}'])
def test_weights_with_a_damaged_meta_json_count_as_not_pulled(tmp_path, content):
    (tmp_path / "meta.json").write_text(content)

    assert read_origin(tmp_path) is None


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
    commit = hub.commit("someone/models.v2", {"unc+ final/a.pth": checkpoint(5)})
    address = f"hf://someone/models.v2@{commit}/unc%2B%20final/a.pth"

    directory = pulled(address)

    assert (directory / "model.safetensors").read_bytes() == checkpoint(5)
    assert json.loads((directory / "meta.json").read_text())["kind"] == "beit3"
    assert read_origin(directory)["file"] == "unc+ final/a.pth"
    assert resolve(address) == directory
    assert (directory / "tokenizer.spm").is_file()


def test_two_different_revisions_are_a_usage_error(hub, pulled):
    with pytest.raises(UsageError, match="two revisions"):
        pulled("hf://a/b@v1/c.pth", revision="v2")


def test_there_is_nothing_to_pull_for_the_packaged_model(hub, pulled):
    with pytest.raises(UsageError, match="is part of refcli"):
        pulled("builtin")


def test_the_names_used_here_are_those_of_the_catalogue():
    assert (
        Catalog.load().find(NAME).file,
        Catalog.load().find(ZIPPED).file,
        Catalog.load().find("beit3-tokenizer").file,
    ) == (FILE, ZIP, SPM)


def test_a_pulled_checkpoint_is_a_model_that_reads_expressions(hub, fixtures):
    from refcli.weights.directory import load_weights
    from refcli.weights.transfer import read_starting_weights

    state = load_file(fixtures / "oneref_tiny_rec" / "weights.safetensors")
    state["beit3.text_embed.weight"] = torch.zeros(64_010, 64)
    content = io.BytesIO()
    torch.save({"model": state, "epoch": 3, "args": Namespace(use_regress_box=True)}, content)
    hub.commit(REPO, {FILE: content.getvalue(), SPM: TOKENIZER})

    lines: list[str] = []
    directory = pull(NAME, report=lines.append)

    assert "differs from the catalogue: width 64 instead of 1024" in lines
    assert "differs from the catalogue: image size 64 instead of 384" in lines
    assert not any("tasks" in line for line in lines)
    assert any("attention heads of 64 channels" in line for line in lines)
    loaded = load_weights(NAME)
    assert loaded.name == directory.name == NAME
    assert read_starting_weights(NAME).head.keys() == loaded.grounder.head.state_dict().keys()
    address = f"hf://{REPO}@main/{FILE}"
    pull(address)
    assert load_weights(address).meta["kind"] == "oneref"
    assert loaded.tokenizer.model == TOKENIZER
    assert loaded.meta["origin"]["sha256"] == sha256(content.getvalue()) == loaded.meta["source"]["sha256"]
    projection = loaded.grounder.state_dict()["tower.vision_embedding.projection.weight"]
    assert torch.equal(projection, state["beit3.vision_embed.proj.weight"])
