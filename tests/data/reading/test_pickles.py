"""Pickles of plain data are read, and nothing in a pickle is executed."""

import builtins
import gzip
import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from refcli.data.reading.pickles import PlainPickleLimits, read_pickle, read_torch_list, starts_torch_list
from refcli.errors import DataError

ROWS = [("a.jpg", {"height": 3, "width": 4}, [1.5, 2.0, 3.25, 4.0], "the café", None), (True, 1 << 80, b"raw", -1)]


class Runs:
    """Pickled as a call of `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def torch_zip(content: bytes, *, prefix: str = "archive") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(f"{prefix}/data.pkl", content)
        file.writestr(f"{prefix}/version", "3\n")
    return buffer.getvalue()


def legacy_torch(content: bytes) -> bytes:
    sizes = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = b"".join(pickle.dumps(one, protocol=2) for one in (0x1950A86A20F9469CFC6C, 1001, sizes))
    return head + content + pickle.dumps([], protocol=2)


@pytest.mark.parametrize("protocol", range(3, 6))
def test_plain_data_survives_in_every_protocol_with_bytes(tmp_path: Path, protocol: int):
    (tmp_path / "a.p").write_bytes(pickle.dumps(ROWS, protocol=protocol))
    assert read_pickle(tmp_path / "a.p") == ROWS


@pytest.mark.parametrize("protocol", range(3))
def test_plain_data_survives_in_the_protocols_of_python_2(tmp_path: Path, protocol: int):
    (tmp_path / "a.p").write_bytes(gzip.compress(pickle.dumps(ROWS[:1], protocol=protocol)))
    assert read_pickle(tmp_path / "a.p") == ROWS[:1]


@pytest.mark.parametrize("protocol", range(3, 6))
def test_numpys_numbers_and_arrays_become_plain_numbers_and_lists_on_request(tmp_path: Path, protocol: int):
    values = {
        "box": np.array([[1.5, 2, 3, 4]]),
        "area": np.array([7], np.uint32),
        "columns": np.asfortranarray([[1, 2], [3, 4]], ">i2"),
        "number": np.int64(-5),
        "flags": np.array([True, False]),
        "records": np.array([{"a": 1}, {"b": [2]}], object),
        "no boxes": np.zeros((0, 4)),
    }
    path = tmp_path / "a.p"
    path.write_bytes(pickle.dumps([values, values], protocol))
    truth = {key: value.tolist() for key, value in values.items()}
    assert read_pickle(path, arrays=True) == [truth, truth]
    with pytest.raises(DataError, match="numpy values"):
        read_pickle(path)


def test_a_pickle_cannot_copy_one_list_of_objects_into_many_arrays(tmp_path: Path):
    """Each array takes 60 bytes of the pickle and copies 200,000 values; all but the last stay on the stack."""
    count = 200_000
    head = b"\x80\x04(" + b"N" * count + b"l\x94cnumpy\ndtype\n(VO8\nI00\nI01\ntR\x94"
    shape = b"I%d\n\x85\x94" % count
    array = b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01h\x02h\x01I00\nh\x00tb"
    path = tmp_path / "a.p"
    for num_arrays, is_read in ((2, True), (2000, False)):
        path.write_bytes(head + shape + array * num_arrays + b".")
        if is_read:
            read_pickle(path, arrays=True)
            continue
        with pytest.raises(DataError, match="expands to far more data"):
            read_pickle(path, arrays=True)


ODD_ARRAYS = {
    "a table of objects": np.array([[{}]], object),
    "texts": np.array(["a"]),
    "three dimensions": np.zeros((1, 1, 1)),
    "no numbers": np.zeros((10**9, 0)),
    "complex numbers": np.array([1j]),
}


@pytest.mark.parametrize("name", ODD_ARRAYS)
def test_other_arrays_are_refused(tmp_path: Path, name: str):
    path = tmp_path / "a.p"
    path.write_bytes(pickle.dumps(ODD_ARRAYS[name], 4))
    with pytest.raises(DataError):
        read_pickle(path, arrays=True)


def test_a_pickle_with_arrays_runs_nothing_and_cannot_hide_a_bomb_behind_them(tmp_path: Path):
    path = tmp_path / "a.p"
    path.write_bytes(pickle.dumps([np.zeros(2), Runs(os.mkdir, str(tmp_path / "made"))], 4))
    with pytest.raises(DataError, match=r"refers to the global posix\.mkdir|refers to the global nt\.mkdir"):
        read_pickle(path, arrays=True)
    assert not (tmp_path / "made").exists()

    doubling = b"".join(b"2" + b"\x86" for _ in range(40))  # DUP, TUPLE2: 2**40 values at 80 opcodes
    hidden = b"\x80\x04Vnumpy\nVdtype\n\x93" + b"0" + b"K\x01" + doubling + b"."
    path.write_bytes(hidden)
    with pytest.raises(DataError):
        read_pickle(path, arrays=True)

    many = pickle.dumps([np.zeros(1 << 20, np.uint8) for _ in range(100)], 4)
    path.write_bytes(gzip.compress(many))
    with pytest.raises(DataError, match="expands"):
        read_pickle(path, arrays=True)


def test_byte_strings_of_python_2_become_latin1_text_that_can_be_recovered(tmp_path: Path):
    path = tmp_path / "python2.p"
    path.write_bytes(b"(lp0\nS'caf\\xc3\\xa9'\np1\na.")  # what Python 2 writes for ['caf\xc3\xa9'], protocol 0
    assert read_pickle(path) == ["cafÃ©"]
    assert read_pickle(path)[0].encode("latin-1").decode("utf-8") == "café"


@pytest.mark.parametrize("wrap", [bytes, torch_zip, legacy_torch, lambda data: gzip.compress(torch_zip(data))])
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("function", [os.system, builtins.eval, builtins.exec])
def test_a_call_in_a_pickle_is_refused_and_does_not_happen(tmp_path: Path, function, protocol: int, wrap):
    trace = tmp_path / "trace"
    code = f"touch {trace}" if function is os.system else f"open({str(trace)!r}, 'w')"
    path = tmp_path / "evil.p"
    path.write_bytes(wrap(pickle.dumps([1, Runs(function, code)], protocol=protocol)))
    with pytest.raises(DataError, match=f"global .*{function.__name__}") as caught:
        read_pickle(path) if wrap is bytes else read_torch_list(path)
    assert caught.value.where == str(path)
    assert "JSON" in str(caught.value.hint)
    assert not trace.exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        b"cos\nsystem\n.",
        b"(ios\nsystem\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"\x80\x02c__builtin__\neval\n.",
        b"\x80\x02ccollections\nOrderedDict\n.",
        b"\x80\x02\x82\x01.",
    ],
    ids=["GLOBAL", "INST", "STACK_GLOBAL", "eval", "OrderedDict", "EXT1"],
)
def test_every_opcode_that_names_a_global_is_refused(tmp_path: Path, opcodes: bytes):
    (tmp_path / "a.p").write_bytes(opcodes)
    with pytest.raises(DataError):
        read_pickle(tmp_path / "a.p")


@pytest.mark.parametrize("opcodes", [b"Pweights\n.", b"\x80\x02X\x01\x00\x00\x00aQ."], ids=["PERSID", "BINPERSID"])
def test_persistent_ids_are_refused(tmp_path: Path, opcodes: bytes):
    (tmp_path / "a.p").write_bytes(opcodes)
    (tmp_path / "a.pth").write_bytes(torch_zip(opcodes))
    for read, name in ((read_pickle, "a.p"), (read_torch_list, "a.pth")):
        with pytest.raises(DataError, match="outside of it"):
            read(tmp_path / name)


@pytest.mark.parametrize("value", [np.float64(1.5), np.int32(3), np.zeros(2)], ids=["float64", "int32", "array"])
def test_numpy_values_are_refused_with_a_way_out(tmp_path: Path, value: object):
    (tmp_path / "a.p").write_bytes(pickle.dumps([{"ann_id": value}]))
    with pytest.raises(DataError, match="numpy values") as caught:
        read_pickle(tmp_path / "a.p")
    assert "re-save as JSON" in str(caught.value.hint)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_cut_anywhere_is_refused(tmp_path: Path, protocol: int):
    whole = pickle.dumps(ROWS[:1], protocol=protocol)
    path = tmp_path / "cut.p"
    for kept in range(len(whole)):
        path.write_bytes(whole[:kept])
        with pytest.raises(DataError, match="truncated or broken") as caught:
            read_pickle(path)
        assert caught.value.where == str(path)


def test_a_pickle_that_announces_more_bytes_than_there_are_is_refused(tmp_path: Path):
    for opcodes in (b"\x80\x04\x8e" + (1 << 60).to_bytes(8, "little"), b"\x80\x02X\xff\xff\xff\x7fa"):
        (tmp_path / "a.p").write_bytes(opcodes + b".")
        with pytest.raises(DataError, match="truncated or broken"):
            read_pickle(tmp_path / "a.p")


def test_a_compressed_pickle_over_the_limit_is_refused(tmp_path: Path):
    limits = PlainPickleLimits(num_bytes=1 << 16)
    data = pickle.dumps(["x" * (1 << 20)])
    for name, content in (
        ("a.gz", gzip.compress(data)),
        ("b", data),
        ("c", torch_zip(data)),
        ("d", legacy_torch(data)),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DataError, match="more than 65,536 bytes"):
            (read_pickle if name in "a.gz b" else read_torch_list)(path, limits=limits)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("wrap", [torch_zip, lambda data: torch_zip(data, prefix="unc_val"), legacy_torch])
def test_both_torch_containers_are_read_plain_and_compressed(tmp_path: Path, wrap, protocol: int):
    content = wrap(pickle.dumps(ROWS[:1], protocol=protocol))
    (tmp_path / "a.pth").write_bytes(content)
    (tmp_path / "a.pth.gz").write_bytes(gzip.compress(content))
    for name in ("a.pth", "a.pth.gz"):
        assert starts_torch_list(tmp_path / name)
        assert read_torch_list(tmp_path / name) == ROWS[:1]


def test_files_that_torch_did_not_write_are_refused_and_not_recognised_as_lists(tmp_path: Path):
    contents = {
        "text": b"hello",
        "empty": b"",
        "pickle": pickle.dumps(ROWS),
        "checkpoint": torch_zip(pickle.dumps({"model": 1}, protocol=2)),
        "zip": torch_zip(b"").replace(b"data.pkl", b"data.txt"),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert not starts_torch_list(tmp_path / name)
        if name != "checkpoint":
            with pytest.raises(DataError):
                read_torch_list(tmp_path / name)
    assert not starts_torch_list(tmp_path / "absent")
    assert read_torch_list(tmp_path / "checkpoint") == {"model": 1}
