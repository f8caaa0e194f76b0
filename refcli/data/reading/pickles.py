"""Pickles and torch-saved lists of plain data; nothing that they name is imported or called."""

from __future__ import annotations

import io
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic

from refcli.data.reading.archives import ZIP_MAGICS, Archive, archive_of
from refcli.data.reading.pickle_machine import PickleMachine, PickleRefusedError, Value
from refcli.data.reading.pickled_arrays import BYTES_PER_BYTE, GLOBALS
from refcli.data.reading.streams import open_binary
from refcli.errors import DataError

_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
"""First pickle of the container that torch wrote before 1.6."""
_TORCH_PROTOCOL = 1001
_START_BYTES = 32
_MAX_NAME = 64
"""Maximum bytes of the name of a module or global that is compared with the allowed ones."""
_LIST_START = re.compile(rb"\x80.(?:\x95.{8})?\]|\(l", re.DOTALL)
"""PROTO, optionally FRAME, EMPTY_LIST; in protocol 0, MARK and LIST."""
_HEADERS = {(1, 0): read_array_header_1_0, (2, 0): read_array_header_2_0}
"""Version of numpy's file format -> the function that reads the header."""
_HINT = "re-save as JSON, or as a pickle of plain lists, dicts, strings and numbers"


@dataclass(frozen=True)
class PlainPickleLimits:
    """The largest pickle of plain data that is loaded; most limits have a fixed part and one per byte."""

    num_bytes: int = 2 << 30
    """Decompressed size; the largest known list, 888,121 records with polygons, has about 1 GB."""
    depth: int = 100
    """Nesting of values; annotation files have 6."""
    weight: int = 2_000_000
    weight_per_byte: int = 16
    """Number of values, counted at every reference; without sharing there is at most one per byte."""
    memory: int = 128 << 20
    memory_per_byte: int = 48
    """Memory of the built values in bytes; known annotation files need 3 to 20 per byte of the pickle."""
    memory_per_stored_byte: int = 256
    """The same per byte of the file, which may be compressed."""
    unpacked: int = 64 << 20
    unpacked_per_byte: int = 64
    """Decompressed bytes, and their ratio to the file's size; annotations compress to an eighth."""

    def max_unpacked(self, num_stored: int) -> int:
        """The largest pickle that a file of this size may hold in compressed form, in bytes."""
        return self.unpacked + self.unpacked_per_byte * num_stored


PLAIN_LIMITS = PlainPickleLimits()


class _PlainUnpickler(pickle.Unpickler):
    """Builds lists, tuples, dicts, strings, bytes and numbers, and nothing else."""

    def __init__(self, stream: BinaryIO, where: str) -> None:
        super().__init__(stream, encoding="latin1")
        self._where = where

    def find_class(self, module_name: str, global_name: str, /) -> object:
        if module_name.split(".")[0] == "numpy":
            raise DataError(
                f"the pickle holds numpy values ({module_name}.{global_name})",
                where=self._where,
                hint="convert them to plain numbers (.item(), .tolist()) and re-save as JSON",
            )
        raise DataError(
            f"the pickle refers to the global {module_name}.{global_name}; only plain data is read",
            where=self._where,
            hint=_HINT,
        )

    def persistent_load(self, pid: object) -> NoReturn:
        raise DataError(
            "the pickle refers to objects outside of it (tensors, for instance); only plain data is read",
            where=self._where,
            hint=_HINT,
        )


class _ArrayUnpickler(_PlainUnpickler):
    """Builds lists in the place of numpy's arrays too."""

    def find_class(self, module_name: str, global_name: str, /) -> object:
        found = GLOBALS.get((module_name, global_name))
        return super().find_class(module_name, global_name) if found is None else found


def read_pickle(path: Path, *, limits: PlainPickleLimits = PLAIN_LIMITS, arrays: bool = False) -> object:
    """Unpickle plain data, protocols 0 to 5, without importing or calling anything.

    Byte strings of Python 2 become text as Latin-1, which never fails and from which UTF-8 can be recovered.

    Args:
        path: the file, plain or gzip.
        limits: the largest pickle allowed.
        arrays: whether to read numpy's numbers, and its arrays of one or two dimensions as lists, from protocol 3 on.

    Raises:
        DataError: the pickle refers to another global or a persistent id, is truncated or broken, or is too large.
    """
    with open_binary(path, max_bytes=limits.num_bytes) as stream:
        return _load(stream, path, limits, arrays=arrays)


def read_object_array(path: Path, *, limits: PlainPickleLimits = PLAIN_LIMITS) -> object:
    """The plain data in a file in which `numpy.save` wrote a list of Python objects, as a list.

    Raises:
        DataError: this is not such a file, or it holds an array of numbers; or as `read_pickle`.
    """
    with open_binary(path, max_bytes=limits.num_bytes) as stream:
        try:
            read_header = _HEADERS[read_magic(stream)]
            shape, _, kind = read_header(stream)
        except (KeyError, ValueError) as error:
            raise DataError(f"this is not a file of numpy.save: {error}", where=str(path)) from error
        if not kind.hasobject or len(shape) != 1:
            raise DataError(
                f"the file holds an array of {kind} of shape {shape}, not a list of records", where=str(path)
            )
        return _load(stream, path, limits, arrays=True)


def read_torch_list(path: Path, *, limits: PlainPickleLimits = PLAIN_LIMITS) -> object:
    """Read plain data written by `torch.save`, in its zip container or that of torch before 1.6, without torch.

    Raises:
        DataError: as `read_pickle`, or the file is neither container.
    """
    where = str(path)
    with open_binary(path, max_bytes=limits.num_bytes) as stream:
        magic = stream.read(len(ZIP_MAGICS[0]))
        stream.seek(0)
        if magic in ZIP_MAGICS:
            return _load_zip(stream, path, limits)
        if _load(stream, path, limits) != _TORCH_MAGIC:
            raise DataError("this is not a file written by torch.save", where=where, hint="check the file's format")
        if _load(stream, path, limits) != _TORCH_PROTOCOL:
            raise DataError("the torch container has an unknown protocol", where=where, hint=_HINT)
        _load(stream, path, limits)  # byte order and integer sizes of the writer, which concern tensors only
        return _load(stream, path, limits)


def starts_torch_list(path: Path) -> bool:
    """Whether a file is a list saved by torch, by its container and first opcodes; False if it cannot be read."""
    where = str(path)
    try:
        with open_binary(path, max_bytes=PLAIN_LIMITS.num_bytes) as stream:
            magic = stream.read(len(ZIP_MAGICS[0]))
            stream.seek(0)
            if magic in ZIP_MAGICS:
                with archive_of(stream, where=where) as archive:
                    start = archive.read_first_bytes(_data_member(archive), num_bytes=_START_BYTES)
            else:
                if not magic.startswith(pickle.PROTO) or _load(stream, path, PLAIN_LIMITS) != _TORCH_MAGIC:
                    return False
                _load(stream, path, PLAIN_LIMITS)
                _load(stream, path, PLAIN_LIMITS)
                start = stream.read(_START_BYTES)
    except DataError:
        return False
    return _LIST_START.match(start) is not None


def _data_member(archive: Archive) -> str:
    names = [name for name in archive.names() if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(names) != 1:
        raise DataError(
            f"the zip has {len(names)} members data.pkl, not one", where=archive.where, hint="check the file's format"
        )
    return names[0]


def _load_zip(stream: BinaryIO, path: Path, limits: PlainPickleLimits) -> object:
    max_bytes = min(limits.num_bytes, limits.max_unpacked(path.stat().st_size))
    with archive_of(stream, where=str(path)) as archive:
        content = archive.read(_data_member(archive), max_bytes=max_bytes)
    return _load(io.BytesIO(content), path, limits)


def _load(stream: BinaryIO, path: Path, limits: PlainPickleLimits, *, arrays: bool = False) -> object:
    """Unpickle one pickle after a check of its opcodes; leaves the stream at the pickle's end."""
    start, where = stream.tell(), str(path)
    machine = (_ArrayMachine if arrays else _DataMachine)(stream, limits, path.stat().st_size)
    end = start + _check_opcodes(machine, where=where)
    stream.seek(start)
    try:
        content: object = (_ArrayUnpickler if arrays else _PlainUnpickler)(stream, where).load()
    except DataError as error:
        error.where = error.where or where
        raise
    except Exception as error:  # hostile bytes can make the unpickler raise any exception
        raise _broken(error, where) from error
    stream.seek(end)
    return content


def _check_opcodes(machine: _DataMachine, *, where: str) -> int:
    """Make sure that Python's unpickler, allowed no global, needs time and memory in proportion to the pickle.

    Follows the pickle to its end, or to the first opcode that refers to a global or an external object, where such an
    unpickler stops.

    Args:
        machine: analyses the pickle.
        where: for the errors.

    Returns:
        Number of bytes of the pickle.

    Raises:
        DataError: the pickle is broken, or expands to far more than its size.
    """
    try:
        machine.run()
    except PickleRefusedError as refusal:
        raise DataError(
            f"the pickle is not read: {refusal}", where=where, hint=f"nothing in it was loaded; {_HINT}"
        ) from None
    except DataError:  # of the stream
        raise
    except Exception as error:  # a broken pickle can fail in any way
        raise _broken(error, where) from error
    return machine.found.num_bytes


def _broken(error: Exception, where: str) -> DataError:
    return DataError(
        f"the pickle is truncated or broken ({type(error).__name__}: {error})",
        where=where,
        hint="copy or download the file again",
    )


class _DataMachine(PickleMachine):
    """Analyses plain data: all limits are in proportion to the bytes read, and a global ends the pickle."""

    def __init__(self, content: bytes | BinaryIO, limits: PlainPickleLimits, num_stored: int) -> None:
        super().__init__(content, max_depth=limits.depth)
        self.limits = limits
        self.num_stored = num_stored
        self.weight = 0
        """The largest weight of a value so far."""

    def check(self, value: Value) -> None:
        super().check(value)
        self.weight = max(self.weight, value.weight)
        if self.weight > self.limits.weight:
            self.check_bounds()

    def check_bounds(self) -> None:
        limits, num_read = self.limits, self.before + self.at
        memory = limits.memory + min(limits.memory_per_byte * num_read, limits.memory_per_stored_byte * self.num_stored)
        weight = limits.weight + limits.weight_per_byte * num_read
        if (
            max(self.weight, self.work) > weight
            or self.memory > memory
            or num_read > limits.max_unpacked(self.num_stored)
        ):
            raise self.expansion_error()

    def expansion_error(self) -> PickleRefusedError:
        return PickleRefusedError("it expands to far more data, or deeper nesting, than annotations need")

    def _forbidden(self) -> None:
        self.is_done = True

    _global = _stack_global = _inst = _persid = _binpersid = _forbidden


class _ArrayMachine(_DataMachine):
    """Analyses plain data and numpy's arrays: a call or a state is part of the value that it makes or fills."""

    def _counted(self, kind: str, length: int) -> None:
        size = self.unsigned(length)
        weight = self.text_of(size).weight
        name = self.take(size).decode("latin-1") if size <= _MAX_NAME else ""
        if not name:
            self.skip(size)
        self.push(Value(kind, weight, largest=size, name=name))

    def _named(self, module: str, name: str) -> None:
        if (module, name) not in GLOBALS:
            raise PickleRefusedError(f"it refers to the global {module}.{name}; only plain data and arrays are read")
        self.push(Value("GLOBAL", name=name))

    def _global(self) -> None:
        module, name = self.line(), self.line()
        self._named(module.decode("latin-1"), name.decode("latin-1"))

    def _stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._named(module.name, name.name)

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.expect(function, "GLOBAL")
        self.expect(arguments, "TUPLE")
        self.make("ARRAY", [arguments], BYTES_PER_BYTE * (1 + arguments.largest))

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        self.expect(target, "ARRAY")
        self.add(target, [state])
        self.memory += BYTES_PER_BYTE * (1 + state.largest)
        self.work += state.weight  # an array of objects is copied
