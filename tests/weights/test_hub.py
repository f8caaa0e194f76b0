"""Downloads from a hub on loopback: interrupted, damaged, refused, offline."""

from __future__ import annotations

from pathlib import Path

import pytest
from loopback_hub import CHUNK, FILE, MIRROR, REPO, TOKENIZER, left_behind, noise, sha256

from refcli.errors import DownloadError, ExitCode, WeightsError
from refcli.weights import hub as hub_client
from refcli.weights.locate import home, pulled_directory


def test_a_file_is_kept_in_the_hubs_own_cache(hub, pulled):
    from huggingface_hub import try_to_load_from_cache

    pulled()

    assert Path(try_to_load_from_cache(REPO, FILE)).read_bytes() == noise(1)


def test_a_pause_in_the_connection_is_bridged(hub, pulled):
    hub.break_after, hub.breaks_left = 3 * CHUNK, 2

    assert (pulled() / "model.safetensors").read_bytes() == noise(1)
    ranges = [request.range for request in hub.downloads() if sha256(noise(1)) in request.path]
    assert ranges == [None, f"bytes={3 * CHUNK}-", f"bytes={6 * CHUNK}-"]


def test_an_interrupted_download_is_resumed(hub, pulled):
    tokenizer = pulled("beit3-tokenizer")
    assert (tokenizer / "beit3.spm").read_bytes() == TOKENIZER
    hub.break_after, hub.breaks_left, hub.then_down = 3 * CHUNK, 1, True

    with pytest.raises(DownloadError, match="503") as broken:
        pulled()

    assert "the part that has arrived is kept" in broken.value.hint
    assert left_behind() == ["beit3-tokenizer"]
    hub.break_after, hub.num_bytes_sent, num_before = None, 0, len(hub.downloads())
    lines: list[str] = []
    assert (pulled(report=lines.append) / "model.safetensors").read_bytes() == noise(1)
    assert [request.range for request in hub.downloads()[num_before:]] == [f"bytes={3 * CHUNK}-"]
    assert hub.num_bytes_sent == 20_000 - 3 * CHUNK
    assert any(line.startswith(f"continuing {FILE}") for line in lines)


def test_a_damaged_download_is_deleted_and_nothing_is_converted(hub, pulled):
    hub.corrupt = True

    with pytest.raises(WeightsError, match="arrived damaged") as damaged:
        pulled()

    assert damaged.value.exit_code == ExitCode.INTEGRITY
    assert left_behind() == []
    assert list((home().parent / "hf").rglob("*.refcli-partial")) == []
    hub.corrupt = False
    assert (pulled() / "model.safetensors").read_bytes() == noise(1)


def test_a_damaged_file_in_the_cache_is_detected_and_replaced_by_force(hub, pulled):
    pulled("beit3-tokenizer")
    blob = home().parent / "hf" / "models--linhuixiao--OneRef" / "blobs" / sha256(TOKENIZER)
    blob.write_bytes(b"something else")
    (pulled_directory("beit3-tokenizer") / "beit3.spm").unlink()

    with pytest.raises(WeightsError, match="cached file is damaged") as damaged:
        pulled("beit3-tokenizer")

    assert "--force" in damaged.value.hint
    assert (pulled("beit3-tokenizer", force=True) / "beit3.spm").read_bytes() == TOKENIZER


def test_force_also_replaces_the_tokenizer_of_a_model(hub, pulled):
    pulled("beit3-tokenizer")
    blob = home().parent / "hf" / "models--linhuixiao--OneRef" / "blobs" / sha256(TOKENIZER)
    blob.write_bytes(b"something else")

    with pytest.raises(WeightsError, match="cached file is damaged"):
        pulled()

    assert (pulled(force=True) / "tokenizer.spm").read_bytes() == TOKENIZER


def test_an_invalid_repository_name_is_not_reported_as_a_broken_connection(hub, pulled):
    with pytest.raises(DownloadError, match=r"some--body/models is not a valid repository name"):
        pulled("hf://some--body/models/model.pth")


def test_a_missing_repository_is_named(hub, pulled):
    with pytest.raises(DownloadError, match="no repository no/where, or it is private") as missing:
        pulled("hf://no/where/model.pth")

    assert "HF_TOKEN" in missing.value.hint


def test_an_unknown_revision_is_named(hub, pulled):
    with pytest.raises(DownloadError, match="no revision 'v9'"):
        pulled(revision="v9")


@pytest.mark.parametrize("token", [None, "somebody"])
def test_the_error_about_a_gated_repository_states_where_to_ask(hub, monkeypatch, token, pulled):
    hub.repositories[REPO].gated_to = "friend"
    if token:
        monkeypatch.setenv("HF_TOKEN", token)

    with pytest.raises(DownloadError, match="must grant you access first") as gated:
        pulled()

    assert f"{hub.url}/{REPO}" in gated.value.hint
    assert "HF_TOKEN" in gated.value.hint
    assert not any(MIRROR in request.path for request in hub.requests)


def test_the_token_opens_a_gated_repository_and_is_sent_nowhere_else(hub, monkeypatch, pulled):
    hub.repositories[REPO].gated_to = "friend"
    monkeypatch.setenv("HF_TOKEN", "friend")

    pulled()

    assert {request.token for request in hub.requests if request.server == "hub"} == {"friend"}
    assert {request.token for request in hub.downloads()} == {None}


def test_a_wrong_token_is_distinguished_from_a_missing_repository(hub, monkeypatch, pulled):
    monkeypatch.setenv("HF_TOKEN", "wrong")

    with pytest.raises(DownloadError, match=r"denies access \(401\)") as refused:
        pulled()

    assert "HF_TOKEN" in refused.value.hint


def test_offline_mode_is_reported_without_any_request(hub, monkeypatch, pulled):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        pulled()

    assert hub.requests == []


def test_offline_mode_uses_the_files_in_the_hubs_cache(hub, monkeypatch, pulled):
    (pulled() / "model.safetensors").unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    num_requests = len(hub.requests)

    assert (pulled() / "model.safetensors").read_bytes() == noise(1)
    assert len(hub.requests) == num_requests


def test_an_unreachable_hub_is_distinguished_from_offline_mode(hub, monkeypatch, pulled):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")

    with pytest.raises(DownloadError, match="cannot be reached") as unreachable:
        pulled()

    assert "HF_ENDPOINT" in unreachable.value.hint
    assert unreachable.value.exit_code == ExitCode.FAILED


def test_a_malformed_endpoint_is_an_error_with_a_hint(hub, monkeypatch, pulled):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "nowhere/{repo_id}/{revision}/{filename}")

    with pytest.raises(DownloadError) as malformed:
        pulled()

    assert "HF_ENDPOINT" in malformed.value.hint


@pytest.mark.parametrize("leading_to", ["{outside}/evil", "../evil", "..", ".", "a/b", "a\\b", "a" * 129, "e vil"])
def test_a_server_cannot_choose_a_path_by_the_name_of_a_file(hub, tmp_path, pulled, leading_to):
    (tmp_path / "outside").mkdir()
    hub.etag = leading_to.format(outside=tmp_path / "outside")

    with pytest.raises(WeightsError, match="a name that the Hub never uses") as refused:
        pulled("beit3-tokenizer")

    assert refused.value.exit_code == ExitCode.INTEGRITY
    assert hub.downloads() == []
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


@pytest.mark.parametrize("honest_answers", range(4))
def test_a_server_cannot_link_the_cache_to_an_existing_file(hub, tmp_path, pulled, honest_answers):
    secret = tmp_path / "secret.pth"
    secret.write_bytes(TOKENIZER)
    hub.etag, hub.honest_answers = str(secret), honest_answers

    if honest_answers < 2:
        with pytest.raises(WeightsError, match="a name that the Hub never uses"):
            pulled("beit3-tokenizer")
    else:  # the name is requested twice: to look into the cache, and to download
        pulled("beit3-tokenizer")

    assert not any(path.is_symlink() and path.resolve() == secret for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("commit", ["main", "f" * 39, "F" * 40])
def test_a_server_cannot_choose_a_path_by_the_name_of_a_commit(hub, tmp_path, pulled, commit):
    hub.commit_header = commit

    with pytest.raises(WeightsError, match="the commit a name that the Hub never uses"):
        pulled()

    assert hub.downloads() == []
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_a_disk_without_links_holds_the_file_itself(hub, monkeypatch, pulled):
    from huggingface_hub import try_to_load_from_cache

    def refuse(path, target):
        raise OSError("links are not supported here")

    monkeypatch.setattr(Path, "symlink_to", refuse)

    assert (pulled() / "model.safetensors").read_bytes() == noise(1)
    cached = Path(try_to_load_from_cache(REPO, FILE))
    assert not cached.is_symlink()
    assert cached.read_bytes() == noise(1)


def test_a_small_file_needs_no_spare_gigabyte(hub, monkeypatch, pulled):
    usage = type("Usage", (), {"free": 3 * len(TOKENIZER)})
    monkeypatch.setattr(hub_client.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(hub_client, "SPARE_BYTES", 1 << 30)

    assert (pulled("beit3-tokenizer") / "beit3.spm").read_bytes() == TOKENIZER


def test_a_full_disk_is_noticed_before_the_download(hub, monkeypatch, pulled):
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(hub_client.shutil, "disk_usage", lambda path: usage)

    with pytest.raises(
        DownloadError, match=r"the disk has 100 bytes left, .* needs 20\.00 kB more and 0 bytes to spare"
    ):
        pulled()

    assert hub.downloads() == []


def test_only_the_wanted_files_are_requested_from_the_hub(hub, monkeypatch, pulled):
    """huggingface_hub would request a list of coding agents, to report in its headers which one runs it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    pulled()

    assert hub.requests
    assert [
        request.path for request in hub.requests if request.server == "hub" and "/resolve/" not in request.path
    ] == []
