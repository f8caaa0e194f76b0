"""Names, addresses and paths of weights resolve to a directory, or to the command that creates it."""

from __future__ import annotations

import pytest

from refcli.errors import UsageError, WeightsError
from refcli.weights import hub
from refcli.weights.catalog import Catalog
from refcli.weights.locate import BUILTIN_PATH, HubUri, canonical, pulled_directory, resolve

NAME = "oneref-large-rec-refcoco"


@pytest.mark.parametrize(
    "address",
    [
        "hf://OneRef/model.pth",
        "hf://a/b",
        "hf://a/b/",
        "hf://a/b/../c.pth",
        "hf://a/b/%2e%2e/c",
        "hf://a/b@../c.pth",
        "hf://a/b@v1%2F..%2F../c.pth",
        "hf://../b/c.pth",
        "hf://a b/c/d",
        "hf://",
    ],
)
def test_a_malformed_address_is_a_usage_error(address):
    with pytest.raises(UsageError, match=r"address|leaves"):
        HubUri.parse(address)


def test_an_address_is_written_as_it_was_read():
    text = "hf://org/repo@refs%2Fpr%2F1/dir/file+.zip#unc+/best.pth"

    assert HubUri.parse(text) == HubUri("org/repo", "dir/file+.zip", "refs/pr/1", "unc+/best.pth")
    assert str(HubUri.parse(text)) == text


def test_every_file_has_one_address_however_it_is_typed():
    for typed in ("hf://a/b/50%25%20%2B%23.pth#100%25", "hf://a/b/50%25 +%23.pth#100%25"):
        uri = HubUri.parse(typed)
        assert (uri.file, uri.member) == ("50% +#.pth", "100%")
        assert HubUri.parse(canonical(typed)) == uri
        assert canonical(typed) == canonical(canonical(typed)) == "hf://a/b/50%25 +%23.pth#100%25"
    assert canonical("vqkd") == "vqkd"


def test_the_address_in_the_hint_can_be_pulled():
    with pytest.raises(UsageError) as malformed:
        HubUri.parse("hf://")

    example = HubUri.parse(malformed.value.hint.split()[-1])
    assert (example.repo, example.file) == ("linhuixiao/OneRef", Catalog.load().find("beit3-base").file)


def test_similar_addresses_have_different_directories(tmp_path, monkeypatch):
    monkeypatch.setenv("REFCLI_HOME", str(tmp_path))
    addresses = ["hf://a/b/c/d.pth", "hf://a/b/c--d.pth", "hf://a/b/c d.pth"]

    assert len({pulled_directory(address) for address in addresses}) == 3
    assert {pulled_directory(address).parent for address in addresses} == {tmp_path / "weights"}


def test_resolve_knows_the_packaged_model_and_directories(tmp_path):
    (tmp_path / "model.safetensors").touch()

    assert resolve("builtin") == BUILTIN_PATH
    assert resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("name", "command"),
    [
        (NAME, f"refcli weights pull {NAME}"),
        ("hf://a/b/c d.pth", "refcli weights pull 'hf://a/b/c d.pth'"),
    ],
)
def test_resolve_never_downloads_but_names_the_command(tmp_path, monkeypatch, name, command):
    monkeypatch.setenv("REFCLI_HOME", str(tmp_path))
    monkeypatch.setattr(hub, "fetch", None)

    with pytest.raises(WeightsError, match="not on this machine yet") as missing:
        resolve(name)

    assert missing.value.hint == command


def test_resolve_suggests_a_similar_name(tmp_path, monkeypatch):
    monkeypatch.setenv("REFCLI_HOME", str(tmp_path))
    checkpoint = tmp_path / "best checkpoint.pth"
    checkpoint.touch()

    with pytest.raises(UsageError, match="did you mean 'oneref-large-rec-refcoco'"):
        resolve("oneref-large-rec-refcco")
    with pytest.raises(UsageError, match="single file") as single:
        resolve(str(checkpoint))
    assert single.value.hint == f"refcli weights convert '{checkpoint}' --out DIR"
    with pytest.raises(UsageError, match="a tokenizer, not a model"):
        resolve("beit3-tokenizer")


def test_a_name_too_long_for_any_disk_is_an_unknown_name():
    with pytest.raises(UsageError, match="no weights called 'xxx"):
        resolve("x" * 300)
    with pytest.raises(UsageError, match="no weights called"):
        resolve("a/" + "x" * 5000)
