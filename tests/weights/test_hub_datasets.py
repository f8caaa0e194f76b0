"""Data sets by their hf:// address: from the cache, and from the Hub only with --download."""

import json

import pytest
from loopback_hub import commit_name
from parquet_releases import LEFT, lmms_row, write_parquet

from refcli.errors import DownloadError, UsageError
from refcli.recipes.hub_datasets import DatasetAddress, fetch_dataset

REPO = "org/cups"
FILE = "data/val-00000-of-00001.parquet"


@pytest.fixture
def repository(hub, tmp_path):
    content = write_parquet(tmp_path / FILE, [lmms_row(1, LEFT, "left cup")]).read_bytes()
    hub.commit(REPO, {FILE: content, "README.md": b"cups", "images.tar": b"large"})
    return hub


def test_a_data_set_is_downloaded_only_if_asked_for_and_then_read_without_a_request(repository, refcli, tmp_path):
    address = f"hf://datasets/{REPO}"
    words = ["prepare-data", "--from", address, "--name", "cups", "--out", tmp_path / "store"]

    code, _, err = refcli(*words)
    assert (code, repository.requests) == (5, [])
    assert "add --download" in err

    code, _, err = refcli(*words, "--download")
    assert code == 0, err
    assert len(repository.downloads()) == 1  # neither the README nor the archive

    repository.requests.clear()
    code, _, err = refcli(*words)
    assert (code, repository.requests) == (0, [])
    assert "unchanged" in err
    split = json.loads((tmp_path / "store" / "manifest.json").read_text())["datasets"]["cups"]["splits"]["val"]
    assert split["origin"]["hub"] == {"repo": REPO, "revision": None, "commit": commit_name(0)}


def test_a_revision_and_a_folder_can_be_named(repository):
    repository.commit(REPO, {FILE: b"newer", "other/a.jsonl": b"{}"})

    old = fetch_dataset(f"hf://datasets/{REPO}@{commit_name(0)}/data", download=True)
    new = fetch_dataset(f"hf://datasets/{REPO}/other", download=True)

    assert old.path.name == "data"
    assert (old.path / "val-00000-of-00001.parquet").read_bytes() != b"newer"
    assert (old.commit, new.commit) == (commit_name(0), commit_name(1))
    assert [path.name for path in new.path.iterdir()] == ["a.jsonl"]


def test_what_the_hub_refuses_is_explained(repository):
    repository.commit("org/secret", {FILE: b""})
    repository.repository("org/secret").gated_to = "the right token"
    for address, message in (
        ("org/none", "no repository org/none"),
        (f"{REPO}@none", "no revision 'none'"),
        ("org/secret", "must grant you access"),
    ):
        with pytest.raises(DownloadError, match=message) as caught:
            fetch_dataset(f"hf://datasets/{address}", download=True)
        assert caught.value.hint
        assert caught.value.exit_code == 1


@pytest.mark.parametrize("address", ["org", "org/a/../../b", "org/a@v/..", "org/a@..", "org/a/*"])
def test_an_address_that_leaves_its_repository_is_refused(address):
    with pytest.raises(UsageError):
        DatasetAddress.parse(f"hf://datasets/{address}")
