"""Pickles of plain data, lists of torch.save and checkpoints, down to single opcodes."""

from __future__ import annotations

import argparse
import gzip
import io
import pickle
import zipfile

import pytest
import torch
from harness import NUM_INPUTS, damaged, fuzz
from hypothesis import strategies as st
from safetensors.torch import save as save_safetensors

from refcli.data.reading.pickles import read_pickle, read_torch_list, starts_torch_list
from refcli.data.sources.pth.tuples import read_rows, sniff_rows
from refcli.data.sources.record import Problems
from refcli.data.sources.refcoco import read_refs, sniff_refs
from refcli.engine.checkpointing.checkpoint import Checkpoints
from refcli.engine.checkpointing.state import BatchLayout, TrainingState
from refcli.engine.distributed.world import World
from refcli.weights.official.archives import extract_checkpoint, is_zip_of_weights
from refcli.weights.official.convert import convert
from refcli.weights.official.reading import read_checkpoint

REFS = [
    {
        "ref_id": number,
        "ann_id": number + 3,
        "image_id": 7,
        "split": "val",
        "file_name": "COCO_train2014_000000000007_3.jpg",
        "category_id": 1,
        "sent_ids": [number],
        "sentences": [{"sent": "the cup", "raw": "The cup", "sent_id": number, "tokens": ["the", "cup"]}],
    }
    for number in range(3)
]
ROWS = [
    ("COCO_train2014_000000000007.jpg", f"{number}.pth", [1.0, 2.0, 3.0, 4.0], "the cup", [[1, 2]]) for number in (1, 2)
]
STATE = {"beit3.encoder.layers.0.a.weight": torch.ones(2, 3), "beit3.b": torch.zeros(2, dtype=torch.int64)}
ARGS = argparse.Namespace(lr=1e-4, names={"a", "b"})
CHECKPOINT = {"model": STATE, "args": ARGS, "epoch": 3, "optimizer": {0: STATE}}

LENGTHS = (0, 1, 2, 5, 255, 1 << 16, (1 << 31) - 1, (1 << 32) - 1, (1 << 63) - 1)
ALONE = b"(.012NRQ)]}aeudsltbo\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94\x97\x98"
NAMES = (
    "collections OrderedDict", "collections Counter", "torch._utils _rebuild_tensor_v2", "torch FloatStorage",
    "torch Size", "torch Tensor", "argparse Namespace", "__builtin__ set", "__builtin__ bytearray", "_codecs encode",
    "torch._utils _rebuild_wrapper_subclass", "os system",
)  # fmt: skip
PIECES = (
    b"X\x01\x00\x00\x00a", b"\x8c\x05model", b"U\x04args", b"G" + bytes(8), b"G\x7f\xf0" + bytes(6), b"M\x00\x01",
    b"I1\n", b"I01\n", b"L5L\n", b"F1.5\n", b"S'a'\n", b"Va\n", b"p0\n", b"g0\n", b"p99999999999\n", b"Pa\n",
    b"X\x07\x00\x00\x00storage", b"X\x01\x00\x00\x000", b"X\x03\x00\x00\x00cpu", b"\x86R", b"\x85R", b"(tR",
    b"]q\x00h\x00a", b"}q\x01(K\x01h\x01u", b"h\x00h\x00\x86q\x00" * 20, b"(" * 50, b"t" * 50, b"\x85" * 300,
    b"2\x86" * 30, b"(ios\nsystem\n", *("c{}\n{}\n".format(*name.split()).encode() for name in NAMES),
)  # fmt: skip


def with_numbers(codes: bytes, size: int) -> list[bytes]:
    """Opcodes followed by an index or a length of `size` bytes."""
    most = 1 << 8 * size
    return [bytes([code]) + (number % most).to_bytes(size, "little") for code in codes for number in LENGTHS]


OPCODES = st.sampled_from(
    [
        *(bytes([code]) for code in ALONE),
        *with_numbers(b"qhK\x80\x82\x8a\x8cUC", 1),
        *with_numbers(b"rjJ\x84XTB\x8b", 4),
        *with_numbers(b"\x8d\x8e\x95\x96", 8),
        *PIECES * 4,
    ]
)
PROGRAMS = st.tuples(
    st.sampled_from([b"", b"\x80\x02", b"\x80\x04", b"\x80\x05"]),
    st.lists(OPCODES, max_size=40).map(b"".join),
    st.sampled_from([b".", b"a.", b"e.", b"", b"u.", b"s."]),
).map(b"".join)


def zipped(content: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in (("data.pkl", content), ("data/0", bytes(24)), ("byteorder", b"little"), ("version", b"3\n")):
            archive.writestr(f"archive/{name}", data)
    return buffer.getvalue()


def legacy(content: bytes) -> bytes:
    head = [pickle.dumps(one, protocol=2) for one in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join(head) + content + pickle.dumps([], protocol=2)


def saved(content: object, *, is_zip: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=is_zip)
    return buffer.getvalue()


def packed(contents: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.one_of(contents, contents.map(zipped), contents.map(legacy), contents.map(gzip.compress))


PICKLES = [pickle.dumps(REFS, protocol=protocol) for protocol in (0, 2, 4)]
LISTS = [
    zipped(pickle.dumps(ROWS, protocol=2)),
    legacy(pickle.dumps(ROWS, protocol=2)),
    saved(ROWS),
    saved(ROWS, is_zip=False),
]
CHECKPOINTS = [saved(CHECKPOINT), saved(CHECKPOINT, is_zip=False), save_safetensors(STATE), saved(STATE)]


@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
def test_any_pickle_of_refs_is_read_or_refused(tmp_path, num_inputs):
    path = tmp_path / "refs(unc).p"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        sniff_refs(path)
        read_refs(path, text="sent", problems=Problems())

    fuzz(st.one_of(damaged(PICKLES), PROGRAMS, damaged([gzip.compress(one) for one in PICKLES])), read, num_inputs)


@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
def test_any_program_of_opcodes_is_read_or_refused(tmp_path, num_inputs):
    path = tmp_path / "a.p"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        read_pickle(path)

    fuzz(PROGRAMS, read, num_inputs)


@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
def test_any_list_of_torch_is_read_or_refused(tmp_path, num_inputs):
    path = tmp_path / "unc_val.pth"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        sniff_rows(path)
        if starts_torch_list(path):
            read_torch_list(path)
        read_rows(path, family=None, problems=Problems())

    fuzz(st.one_of(damaged(LISTS), packed(PROGRAMS)), read, num_inputs)


@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
@pytest.mark.filterwarnings("ignore")
def test_any_checkpoint_is_read_or_refused(tmp_path, num_inputs):
    path = tmp_path / "c.pth"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        if is_zip_of_weights(path):
            extract_checkpoint(path, None, tmp_path / "inside.pth")
        read_checkpoint(path)
        convert(path, out=tmp_path / "out")

    contents = st.one_of(damaged(CHECKPOINTS), packed(PROGRAMS), damaged([zipped(one) for one in CHECKPOINTS]))
    fuzz(contents, read, num_inputs)


@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
@pytest.mark.filterwarnings("ignore")
def test_any_state_of_a_run_is_restored_or_refused(tmp_path, num_inputs):
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpoints, world = Checkpoints(tmp_path), World(0, 1, torch.device("cpu"))
    checkpoints.save(TrainingState(model, optimizer, None, step=1), layout=BatchLayout(1, 1, 1), world=world)
    paths = [checkpoints.path(1) / name for name in ("state.pt", "model.safetensors")]
    whole = [path.read_bytes() for path in paths]

    def read(contents: tuple[bytes, bytes]) -> None:
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        restored = torch.nn.Linear(2, 1)
        state = TrainingState(restored, torch.optim.AdamW(restored.parameters()), None)
        checkpoints.load(1, state, world=world)

    states = st.one_of(damaged([whole[0]]), PROGRAMS.map(zipped), st.just(whole[0]))
    fuzz(st.tuples(states, st.one_of(st.just(whole[1]), damaged([whole[1]]))), read, num_inputs)
