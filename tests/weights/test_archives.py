"""Checkpoints come out of zips by name, and hostile zips do no harm."""

from __future__ import annotations

import hashlib
import io
import random
import zipfile

import pytest

from refcli.errors import ExitCode, WeightsError
from refcli.weights.download import read_origin
from refcli.weights.locate import home, pulled_directory, resolve

REPO, ZIP, SPM = "linhuixiao/OneRef", "rec_single_dataset_finetuning_base.zip", "beit3_checkpoints/beit3.spm"
FILE = "rec_single_dataset_finetuning_large_unc.pth"
ZIPPED = "oneref-base-rec-refcoco"


def noise(seed: int, size: int = 20_000) -> bytes:
    return random.Random(seed).randbytes(size)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def left_behind() -> list[str]:
    """What lies in REFCLI_HOME/weights, apart from lock files."""
    return sorted(path.name for path in (home() / "weights").iterdir() if path.suffix != ".lock")


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def commit_zip(hub, content: bytes) -> None:
    hub.commit(REPO, {ZIP: content, SPM: noise(2, 500)})


def test_each_name_takes_its_member_out_of_a_shared_zip(hub, pulled):
    members = {"base/unc/best_checkpoint.pth": noise(3), "base/unc+/best_checkpoint.pth": noise(4), "readme": b""}
    commit_zip(hub, zipped(members))

    assert (pulled(ZIPPED) / "model.safetensors").read_bytes() == noise(3)
    assert (pulled("oneref-base-rec-refcoco-plus") / "model.safetensors").read_bytes() == noise(4)
    assert len([request for request in hub.downloads() if sha256(zipped(members)) in request.path]) == 1
    assert read_origin(resolve(ZIPPED))["member"] == "unc/best_checkpoint.pth"


def test_a_zip_without_the_member_lists_what_it_has(hub, pulled):
    commit_zip(hub, zipped({"flickr/best_checkpoint.pth": noise(3), "x/unc.pth": noise(4)}))

    with pytest.raises(WeightsError, match="0 of what should be one") as missing:
        pulled(ZIPPED)

    assert "flickr/best_checkpoint.pth, x/unc.pth" in missing.value.hint
    assert left_behind() == []


def test_an_address_names_a_member_with_a_hash_sign(hub, pulled):
    commit_zip(hub, zipped({"a/one.pth": noise(3), "a/two.pth": noise(4)}))

    with pytest.raises(WeightsError, match="2 of what should be one"):
        pulled(f"hf://{REPO}/{ZIP}")
    address = f"hf://{REPO}/{ZIP}#two.pth"
    assert (pulled(address) / "model.safetensors").read_bytes() == noise(4)
    assert resolve(address) == pulled_directory(address)


def test_names_in_a_zip_choose_no_place_on_the_disk(hub, tmp_path, pulled):
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


def test_a_zip_with_broken_content_is_refused(hub, pulled):
    content = bytearray(zipped({"unc/best_checkpoint.pth": noise(3)}))
    content[1000] ^= 1
    commit_zip(hub, bytes(content))

    with pytest.raises(WeightsError, match="cannot be read"):
        pulled(ZIPPED)

    assert left_behind() == []


def test_a_torch_checkpoint_which_is_a_zip_too_is_left_whole(hub, pulled):
    checkpoint = zipped({"best_checkpoint/data.pkl": noise(3), "best_checkpoint/version": b"3"})
    hub.commit(REPO, {FILE: checkpoint, SPM: noise(2, 500)})

    assert (pulled() / "model.safetensors").read_bytes() == checkpoint


def test_a_zip_was_promised_and_a_checkpoint_came(hub, pulled):
    commit_zip(hub, noise(3))

    with pytest.raises(WeightsError, match="no zip of checkpoints"):
        pulled(ZIPPED)
