"""Checkpoints are extracted from zips by name, and hostile zips do no harm."""

from __future__ import annotations

import errno
import io
import stat
import zipfile

import pytest
from loopback_hub import FILE, REPO, SPM, TOKENIZER, ZIP, ZIPPED, checkpoint, left_behind, noise, sha256

from refcli.errors import ExitCode, RefcliError, WeightsError
from refcli.weights.locate import home, pulled_directory, resolve
from refcli.weights.pull import read_origin


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def commit_zip(hub, content: bytes) -> None:
    hub.commit(REPO, {ZIP: content, SPM: TOKENIZER})


def test_each_name_extracts_its_member_of_a_shared_zip(hub, pulled):
    members = {"base/unc/best_checkpoint.pth": noise(3), "base/unc+/best_checkpoint.pth": noise(4), "readme": b""}
    content = zipped(members)
    commit_zip(hub, content)

    assert (pulled(ZIPPED) / "model.safetensors").read_bytes() == noise(3)
    assert (pulled("oneref-base-rec-refcoco-plus") / "model.safetensors").read_bytes() == noise(4)
    assert len([request for request in hub.downloads() if sha256(content) in request.path]) == 1
    assert read_origin(resolve(ZIPPED))["member"] == "unc/best_checkpoint.pth"


def test_a_zip_without_the_member_lists_what_it_has(hub, pulled):
    commit_zip(hub, zipped({"flickr/best_checkpoint.pth": noise(3), "x/unc.pth": noise(4)}))

    with pytest.raises(WeightsError, match="0 members that fit") as missing:
        pulled(ZIPPED)

    assert "flickr/best_checkpoint.pth, x/unc.pth" in missing.value.hint
    assert left_behind() == []


def test_an_address_names_a_member_with_a_hash_sign(hub, pulled):
    commit_zip(hub, zipped({"a/one.pth": checkpoint(3), "a/two.pth": checkpoint(4)}))

    with pytest.raises(WeightsError, match="2 members that fit"):
        pulled(f"hf://{REPO}/{ZIP}")
    address = f"hf://{REPO}/{ZIP}#two.pth"
    assert (pulled(address) / "model.safetensors").read_bytes() == checkpoint(4)
    assert resolve(address) == pulled_directory(address)


def test_names_in_a_zip_cannot_choose_a_path(hub, tmp_path, pulled):
    commit_zip(hub, zipped({"../../../unc/best_checkpoint.pth": noise(3), "/etc/motd": b"no"}))

    pulled(ZIPPED)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "home"]
    assert sorted(path.name for path in home().iterdir()) == ["weights"]


def test_a_zip_bomb_is_refused(hub, pulled):
    commit_zip(hub, zipped({"unc/best_checkpoint.pth": bytes(10_000_000)}))

    with pytest.raises(WeightsError, match="would grow") as bomb:
        pulled(ZIPPED)

    assert bomb.value.exit_code == ExitCode.INTEGRITY
    assert left_behind() == []


def test_a_zip_bomb_that_overstates_its_packed_size_is_refused(hub, pulled):
    content = bytearray(zipped({"unc/best_checkpoint.pth": bytes(10_000_000)}))
    packed_size = content.index(b"PK\x01\x02") + 20
    content[packed_size : packed_size + 4] = (9_000_000).to_bytes(4, "little")
    commit_zip(hub, bytes(content))

    with pytest.raises(WeightsError, match="would grow"):
        pulled(ZIPPED)


def test_a_link_in_a_zip_is_not_followed(hub, tmp_path, pulled):
    (tmp_path / "secret.pth").write_bytes(noise(9))
    link = zipfile.ZipInfo("unc/best_checkpoint.pth")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        writer.writestr(link, str(tmp_path / "secret.pth"))
    commit_zip(hub, archive.getvalue())

    with pytest.raises(WeightsError, match="0 members that fit"):
        pulled(ZIPPED)

    assert left_behind() == []


def test_a_full_disk_is_not_blamed_on_the_zip(hub, monkeypatch, pulled):
    commit_zip(hub, zipped({"unc/best_checkpoint.pth": noise(3)}))

    def full(archive, member):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "open", full)
    with pytest.raises(RefcliError, match="cannot be written: No space left") as problem:
        pulled(ZIPPED)

    assert str(home()) in problem.value.where
    assert "make room" in problem.value.hint
    assert left_behind() == []


def test_a_zip_with_damaged_content_is_refused(hub, pulled):
    content = bytearray(zipped({"unc/best_checkpoint.pth": noise(3)}))
    content[1000] ^= 1
    commit_zip(hub, bytes(content))

    with pytest.raises(WeightsError, match="cannot be read"):
        pulled(ZIPPED)

    assert left_behind() == []


def test_a_torch_checkpoint_is_not_mistaken_for_a_zip_of_checkpoints(hub, pulled):
    checkpoint = zipped({"best_checkpoint/data.pkl": noise(3), "best_checkpoint/version": b"3"})
    hub.commit(REPO, {FILE: checkpoint, SPM: TOKENIZER})

    assert (pulled() / "model.safetensors").read_bytes() == checkpoint


def test_a_checkpoint_in_place_of_an_expected_zip_is_refused(hub, pulled):
    commit_zip(hub, noise(3))

    with pytest.raises(WeightsError, match="not a zip of checkpoints"):
        pulled(ZIPPED)
