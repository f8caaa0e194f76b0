"""Pickles and checkpoints that would harm, hang, crash or fill the memory are refused, and ordinary ones are read."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from refcli.data.reading.pickles import PlainPickleLimits, read_pickle, read_torch_list
from refcli.engine.checkpointing.checkpoint import Checkpoints
from refcli.engine.checkpointing.state import BatchLayout, TrainingState
from refcli.engine.distributed.world import World
from refcli.errors import DataError, ExitCode, WeightsError
from refcli.weights.official.reading import read_checkpoint

MODULUS = (1 << 61) - 1
"""Integers that differ by a multiple of it have the same hash."""
ONE = b"K\x01"


def number(value: int) -> bytes:
    """The opcodes of a number."""
    return pickle.dumps(value, protocol=2)[2:-1]


def text(letters: str) -> bytes:
    encoded = letters.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def nested_share(times: int) -> bytes:
    """A list of two of a list of two ..., as Python's own pickler writes it."""
    value: list[object] = [1, 2, 3, 4]
    for _ in range(times):
        value = [value, value]
    return pickle.dumps(value, protocol=2)


BOMBS = {
    "memo index of a few bytes": b"\x80\x02]r\xff\xff\xff\x0f.",
    "memo index in text": b"(lp999999999\n.",
    "tuple too deep to be hashed": b"\x80\x02]}(N" + b"\x85" * 50_000 + ONE + b"ua.",
    "list too deep": b"\x80\x02" + b"]" * 5_000 + b"a" * 4_999 + b".",
    "marks without end": b"\x80\x02]" + b"(" * 20_000 + b"t" * 20_000 + b".",
    "tuple doubled by DUP": b"\x80\x02]}(N" + b"2\x86" * 60 + ONE + b"ua.",
    "tuple doubled by the memo": b"\x80\x02]}(Nq\x00" + b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(60)) + ONE
    + b"ua.",
    "lists of lists shared": nested_share(40),
    "lists of lists of text shared": pickle.dumps([["x" * 1000] * 1000] * 10_000, protocol=4),
    "a list that grows later": b"\x80\x02](]q\x00" + b"h\x00" * 3_000 + b"e(h\x00(" + ONE * 2_000 + b"e" + b"t.",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "a list in itself by a dict": b"\x80\x02]q\x00}" + text("k") + b"h\x00sa.",
    "numbers of equal hash": b"\x80\x02]}(" + b"".join(number(k * MODULUS) + ONE for k in range(1, 8_000)) + b"ua.",
    "numbers chosen to collide": b"\x80\x02]}(" + b"".join(number(k << 40) + ONE for k in range(8_000)) + b"ua.",
    "a set of equal hashes": b"\x80\x04\x8f(" + b"".join(number(k * MODULUS) for k in range(8_000)) + b"\x90.",
    "a number of many digits": b"L" + b"9" * 60_000 + b"L\n.",
    "a number of many bytes": b"\x80\x02\x8b" + struct.pack("<I", 100_000) + b"\x01" * 100_000 + b".",
    "a frame of exabytes": b"\x80\x04\x95" + b"\xff" * 7 + b"\x3f].",
    "a text of exabytes": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x3f].",
    "a value out of band": b"\x80\x05\x97.",
    "a code of the extension registry": b"\x80\x02\x82\x01.",
}  # fmt: skip


def in_torch_zip(content: bytes, *more: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in (("data.pkl", content), ("version", b"3\n"), *more):
            archive.writestr(f"archive/{name}", data)
    return buffer.getvalue()


def in_legacy_torch(content: bytes, *, about: bytes = b"\x80\x02}.") -> bytes:
    head = [pickle.dumps(one, protocol=2) for one in (0x1950A86A20F9469CFC6C, 1001)]
    return b"".join(head) + about + content + pickle.dumps([], protocol=2)


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_pickle_that_expands_far_beyond_its_size_is_refused(tmp_path, bomb):
    (tmp_path / "a.p").write_bytes(bomb)
    (tmp_path / "b.p").write_bytes(gzip.compress(bomb))
    (tmp_path / "c.pth").write_bytes(in_torch_zip(bomb))
    (tmp_path / "d.pth").write_bytes(in_legacy_torch(bomb))
    tracemalloc.start()
    for name, read in (
        ("a.p", read_pickle),
        ("b.p", read_pickle),
        ("c.pth", read_torch_list),
        ("d.pth", read_torch_list),
    ):
        with pytest.raises(DataError) as caught:
            read(tmp_path / name)
        assert caught.value.exit_code == ExitCode.INTEGRITY
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 << 20


def test_each_pickle_of_the_old_container_is_checked(tmp_path):
    (tmp_path / "a.pth").write_bytes(in_legacy_torch(b"\x80\x02].", about=BOMBS["list too deep"]))
    with pytest.raises(DataError, match="expands to far more data"):
        read_torch_list(tmp_path / "a.pth")


def test_a_small_gzip_file_of_a_huge_pickle_is_refused(tmp_path):
    limits = PlainPickleLimits(unpacked=1 << 20)
    content = b"\x80\x02](" + ONE * (2 << 20) + b"e."
    (tmp_path / "a.p").write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match="expands to far more data"):
        read_pickle(tmp_path / "a.p", limits=limits)
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", content)
    with pytest.raises(DataError, match="more than"):
        read_torch_list(tmp_path / "a.pth", limits=limits)


@pytest.mark.parametrize("protocol", range(6))
def test_annotations_that_share_values_as_picklers_write_them_are_read(tmp_path, protocol):
    polygon, size = [1.5, 2.0] * 500, {"height": 480, "width": 640}
    rows = [("a.jpg", size, [1, 2, 3, 4], f"the cup {n}", [polygon], {n: (n, 1 << 40, None, True)}) for n in range(50)]
    rows += [
        {"sentences": [{"tokens": ["the", "cup"], "sent_id": n}], "split": "train", "é": -1.5} for n in range(2000)
    ]
    (tmp_path / "a.p").write_bytes(pickle.dumps(rows, protocol=protocol))
    assert read_pickle(tmp_path / "a.p") == rows


@pytest.mark.parametrize(("suffix", "kind"), [("p", "refer"), ("pth", "pth")])
def test_the_command_ends_with_the_code_of_damaged_data(tmp_path, refcli, suffix, kind):
    for name in ("memo index of a few bytes", "lists of lists shared", "numbers of equal hash"):
        path = tmp_path / f"bomb.{suffix}"
        path.write_bytes(BOMBS[name] if suffix == "p" else in_torch_zip(BOMBS[name]))
        code, _, err = refcli("prepare-data", "--from", path, "--format", kind, "--name", "x", "--out", tmp_path / "st")
        assert code == ExitCode.INTEGRITY, err
        assert "unexpected" not in err


# Checkpoints.


def torchscript(tmp_path: Path) -> Path:
    class Doubling(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    path = tmp_path / "program.pth"
    torch.jit.save(torch.jit.trace(Doubling(), torch.zeros(1)), str(path))
    return path


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_archive_never_reaches_torch(tmp_path, refcli, monkeypatch):
    program = torchscript(tmp_path)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch reads it"))
    code, _, err = refcli("weights", "convert", program, "--out", tmp_path / "out")
    assert code == ExitCode.INTEGRITY
    assert "TorchScript archive" in err
    with zipfile.ZipFile(program) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for left_out in ("constants.pkl", "/code/"):
        with zipfile.ZipFile(tmp_path / "less.pth", "w") as archive:
            for name, content in members.items():
                if left_out not in name:
                    archive.writestr(name, content)
        with pytest.raises(WeightsError, match="TorchScript archive"):
            read_checkpoint(tmp_path / "less.pth")


@pytest.mark.parametrize("name", ["storages", "\x80\x02}."])
def test_a_checkpoint_in_the_oldest_container_which_is_a_tar_is_refused(tmp_path, name):
    with tarfile.open(tmp_path / "a.pth", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        for member in (name, "pickle"):
            archive.addfile(tarfile.TarInfo(member), io.BytesIO())
    with pytest.raises(WeightsError, match="tar archive"):
        read_checkpoint(tmp_path / "a.pth")


def test_two_archives_joined_into_one_file_are_refused(tmp_path):
    """Python's zip reader finds the directory of the second one; torch's uses the offset stored in the file."""
    torch.save({"a": torch.zeros(1)}, tmp_path / "one.pth")
    torch.save({"b": torch.zeros(2)}, tmp_path / "two.pth")
    (tmp_path / "c.pth").write_bytes((tmp_path / "one.pth").read_bytes() + (tmp_path / "two.pth").read_bytes())
    with pytest.raises(WeightsError, match="directory is not at its stated offset"):
        read_checkpoint(tmp_path / "c.pth")


def storage(key: str, numel: int) -> bytes:
    """The opcodes of a tensor of `numel` float32 in the storage `key`."""
    persistent = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(numel) + b"tQ"
    hooks = b"ccollections\nOrderedDict\n)R"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + persistent
        + b"K\x00("
        + number(numel)
        + b"t(K\x01t\x89"
        + hooks
        + b"tR"
    )


def test_a_storage_that_has_fewer_bytes_than_declared_is_refused(tmp_path):
    opcodes = b"\x80\x02}" + text("a") + storage("0", 100) + b"s."
    enough, too_little = [(f"data/{key}", bytes(size)) for key, size in (("0", 400), ("0", 396))]
    padding = ("data/1", bytes(1000))
    (tmp_path / "good.pth").write_bytes(in_torch_zip(opcodes, enough))
    assert read_checkpoint(tmp_path / "good.pth").state["a"].shape == (100,)
    for more in ((too_little, padding), (padding,)):
        (tmp_path / "bad.pth").write_bytes(in_torch_zip(opcodes, *more))
        with pytest.raises(WeightsError, match="declares 400 bytes"):
            read_checkpoint(tmp_path / "bad.pth")


@pytest.mark.parametrize(
    "opcodes",
    [
        storage("0", 1) + b"K\x00" + ONE + b"s",  # an item of a tensor
        storage("0", 1) + b"(K\x00" + ONE + b"u",
        storage("0", 1) + b"(" + ONE + b"tb",  # a state of a tensor: `set_`
        storage("0", 1) + ONE + b"a",
        b"}" + ONE + b"a",
        b"]K\x00" + ONE + b"s",
        b"(" + text("storage") + ONE + text("0") + text("cpu") + ONE + b"tQ",
        ONE + b"Q",
        b"})R",  # a call of something that is not a function
    ],
)
def test_values_used_as_another_type_are_refused(tmp_path, opcodes):
    (tmp_path / "a.pth").write_bytes(in_torch_zip(b"\x80\x02" + opcodes + b".", ("data/0", bytes(4))))
    with pytest.raises(WeightsError):
        read_checkpoint(tmp_path / "a.pth")


def test_the_pairs_that_a_dict_is_built_from_are_counted_as_its_keys(tmp_path):
    pairs = b"](" + b"".join(b"]" + pickle.dumps(float(k))[-10:-1] + b"aK\x01a" for k in range(12_000)) + b"e"
    opcodes = b"\x80\x02}" + text("args") + b"ccollections\nOrderedDict\n" + pairs + b"\x85Rs."
    (tmp_path / "a.pth").write_bytes(in_torch_zip(opcodes))
    with pytest.raises(WeightsError, match="expands to far more data"):
        read_checkpoint(tmp_path / "a.pth")


# The state of a training run.


def optimised() -> TrainingState:
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return TrainingState(model, optimizer, None, step=1)


STATES = {
    "a call that crashes torch": in_torch_zip(b"\x80\x02ctorch._utils\n_rebuild_wrapper_subclass\n)R."),
    "a system call": in_torch_zip(b"\x80\x02cos\nsystem\n" + text("true") + b"\x85R."),
    "too deep": in_torch_zip(b"\x80\x02" + b"\x85".join([b"N"] + [b""] * 100_000) + b"."),
    "a list": in_torch_zip(b"\x80\x02]."),
    "a set of tensors": in_torch_zip(b"\x80\x02c__builtin__\nset\n]\x85R."),
    "cut off": in_torch_zip(b"\x80\x02}")[:100],
    "nothing": b"",
    "a dict of nothing": in_torch_zip(b"\x80\x02}."),
    "values of other kinds": in_torch_zip(pickle.dumps({"layout": 5, "optimizer": "x", "generators": []}, protocol=2)),
    "safetensors": struct.pack("<Q", 2) + b"{}",
}


@pytest.mark.parametrize("content", STATES.values(), ids=STATES)
def test_a_damaged_run_state_is_named_and_not_loaded(tmp_path, content):
    checkpoints, world = Checkpoints(tmp_path), World(0, 1, torch.device("cpu"))
    checkpoints.save(optimised(), layout=BatchLayout(1, 1, 1), world=world)
    assert checkpoints.load(1, optimised(), world=world) == BatchLayout(1, 1, 1)
    (checkpoints.path(1) / "state.pt").write_bytes(content)
    with pytest.raises(DataError, match=r"the checkpoint is damaged|the checkpoint does not fit") as caught:
        checkpoints.load(1, optimised(), world=world)
    assert caught.value.exit_code == ExitCode.INTEGRITY
    assert caught.value.hint


def test_numpy_values_keep_their_own_message(tmp_path):
    (tmp_path / "a.p").write_bytes(pickle.dumps([{"ann_id": np.int64(3)}]))
    with pytest.raises(DataError, match="numpy values"):
        read_pickle(tmp_path / "a.p")
