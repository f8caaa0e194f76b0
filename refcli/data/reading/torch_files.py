"""Files of torch.save, analysed before torch loads them: the names they refer to, and whether they are safe to load."""

from __future__ import annotations

import re
import stat
import struct
import tarfile
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from refcli.data.reading.pickle_machine import (
    LETTERS_PER_WEIGHT,
    MAX_DIGITS,
    MAX_LINE,
    PROTOCOL_OF,
    PickleMachine,
    PickleRefusedError,
    PickleSurvey,
    Value,
)
from refcli.errors import RefcliError, UsageError

CHECKPOINT_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
ZIP_START, PICKLE_START = b"PK\x03\x04", b"\x80"
SAFETENSORS_HEADER = 8
"""Bytes of a safetensors file before its JSON header; they hold the header's length."""
LEGACY_PICKLES = 5
"""Number of pickles before the raw tensors: magic number, protocol, system, object, storage keys."""
MAX_PICKLE_BYTES = 8 << 20
"""Maximum size of a pickle; that of the largest OneRef model with its optimiser state has 360 kB."""
CHECKPOINT_PROTOCOL = 2
"""The last protocol whose opcodes torch's restricted unpickler knows; torch.save writes it."""
FETCH_AGAIN = "the file may be cut off or not be a checkpoint at all: download it again"
_NOT_LOADED = "nothing in it was loaded; check that this is a weights file"
_SMALL_NUMBER = 1 << 20
"""Largest number that any call may have as an argument; larger ones are limited by the size of the file."""
_SLOW_CODECS = frozenset({"punycode", "idna"})
"""Python's codecs that need quadratic time."""
_DICTS = frozenset({"collections.OrderedDict", "collections.Counter", "collections.defaultdict"})
_LISTS = frozenset({"collections.deque"})
_NEVER_BUILT = re.compile(
    r"torch\.(\w+|_.*|(nn\.parameter|serialization|storage|cuda)\..*)|(builtins|_codecs)\..*|collections\.Counter|"
)
"""Objects whose state no checkpoint sets; torch would pass the state on, for instance to a tensor's `set_`."""
_STORAGE_BYTES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2}
_COMPLEX_BYTES = {"ComplexDouble": 16, "ComplexFloat": 8}
_PERSISTENT_PARTS = 5
TORCHSCRIPT_FILE, TORCHSCRIPT_FOLDER = "constants.pkl", "code"
"""Parts of a TorchScript archive; torch before 2.6 runs such a program even with `weights_only`."""
_END, _END_64, _END_64_LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_END_BYTES, _LOCATOR_BYTES, _END_64_BYTES = 22, 20, 56
_AT_END_64 = 0xFFFFFFFF
Container = Literal["zip", "legacy", "safetensors"]


@dataclass(frozen=True)
class PickleLimits:
    """The largest checkpoint pickle that is loaded, far above that of the largest OneRef model with its optimiser."""

    steps: int = 3_000_000
    """Number of opcodes; that model has 150 thousand."""
    weight: int = 50_000_000
    """Number of values, counted at every reference; that model has 250 thousand."""
    depth: int = 1_000
    """Nesting of values; Python crashes when it hashes a much deeper tuple."""


CHECKPOINT_LIMITS = PickleLimits()


def container_of(path: Path, *, error: type[RefcliError]) -> Container:
    """The container of a file of tensors, by its first bytes.

    Raises:
        UsageError: there is no such file.
        RefcliError: (of the class `error`) the file is not a checkpoint.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            with path.open("rb") as file:
                start = file.read(tarfile.BLOCKSIZE)
    except OSError as problem:
        what = (
            "there is no such checkpoint file" if isinstance(problem, FileNotFoundError) else "the file cannot be read"
        )
        raise UsageError(what, where=str(path), hint=problem.strerror) from problem
    if not stat.S_ISREG(mode):
        what = "a directory" if stat.S_ISDIR(mode) else "a device, pipe or socket"
        raise UsageError(f"this is {what}, not a checkpoint file", where=str(path), hint="give the file itself")
    if _is_tar(start):
        raise error(
            "this is a tar archive: a Docker image, a NeMo model, or a checkpoint from before PyTorch 0.2",
            where=str(path),
            hint="refcli does not read it: unpack it, or load it with a program you trust and save its state_dict()",
        )
    if start[SAFETENSORS_HEADER : SAFETENSORS_HEADER + 1] == b"{":
        return "safetensors"
    if start.startswith(ZIP_START):
        return "zip"
    if start.startswith(PICKLE_START):
        return "legacy"
    raise error(
        "this is not a PyTorch checkpoint",
        where=str(path),
        hint=f"it starts with {start[: SAFETENSORS_HEADER + 1]!r}: a web page or a Git LFS pointer instead of the file?"
        " download it again",
    )


def survey_torch_file(path: Path, container: Container, *, error: type[RefcliError]) -> PickleSurvey:
    """The names and storages of a torch.save file, after a check that it is neither a bomb nor a program.

    Raises:
        RefcliError: (of the class `error`) the file is damaged or hostile, a TorchScript archive, or declares tensors
            larger than its content.
    """
    found = PickleSurvey()
    if container == "safetensors":
        raise error("this is a safetensors file, not a torch.save file", where=str(path))
    if container == "zip":
        try:
            _survey_zip(path, found, error)
        except RefcliError:
            raise
        except Exception as problem:  # a broken or hostile archive can fail in any way
            hint = f"{problem}; {FETCH_AGAIN}"
            raise error("the checkpoint is damaged", where=str(path), hint=hint) from problem
    else:
        _survey_legacy(path, found, error)
    declared, held = sum(found.storages.values()), path.stat().st_size
    if declared > held:
        raise error(
            f"the checkpoint's tensors declare {declared:,} bytes, but the file has {held:,}",
            where=str(path),
            hint=FETCH_AGAIN,
        )
    return found


def _is_tar(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True


def survey_pickle(
    content: bytes | BinaryIO,
    *,
    num_bytes: int,
    where: str,
    error: type[RefcliError],
    limits: PickleLimits = CHECKPOINT_LIMITS,
) -> PickleSurvey:
    """The names and storages of one pickle of a checkpoint, if it is not a bomb.

    Args:
        content: the pickle, read up to its end.
        num_bytes: size of the whole file.
        where: for the errors, which are of the class `error`.
        limits: the largest pickle allowed.

    Raises:
        RefcliError: the pickle is broken, of a protocol that torch does not read here, or beyond the limits.
    """
    machine = _CheckpointMachine(content, num_bytes, limits)
    try:
        machine.run()
    except PickleRefusedError as refusal:
        raise error(f"the checkpoint is not read: {refusal}", where=where, hint=refusal.hint or _NOT_LOADED) from None
    except Exception as problem:  # a broken pickle can fail in any way
        hint = f"{str(problem) or type(problem).__name__}; {FETCH_AGAIN}"
        raise error("the checkpoint is damaged", where=where, hint=hint) from problem
    return machine.found


def _survey_legacy(path: Path, found: PickleSurvey, error: type[RefcliError]) -> None:
    """Survey a container from before torch 1.6, which starts with several pickles in a row."""
    start = 0
    with path.open("rb") as file:
        for _ in range(LEGACY_PICKLES):
            file.seek(start)
            survey = survey_pickle(file, num_bytes=path.stat().st_size, where=str(path), error=error)
            found.merge(survey)
            start += survey.num_bytes
            if start > MAX_PICKLE_BYTES:
                raise error("the checkpoint's pickle is too large", where=str(path))


def _survey_zip(path: Path, found: PickleSurvey, error: type[RefcliError]) -> None:
    num_bytes = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        _check_archive(archive, members, path, error)
        for member in _pickles(members):  # also those of equal names: torch and Python may choose different ones
            if member.file_size > MAX_PICKLE_BYTES:
                raise error("the checkpoint's pickle is too large", where=f"{path}: {member.filename}")
            found.merge(survey_pickle(archive.read(member), num_bytes=num_bytes, where=str(path), error=error))
    sizes: dict[str, int] = {}
    for member in members:
        name = _name(member)
        sizes[name] = min(member.file_size, sizes.get(name, member.file_size))
    held = {name.rpartition("/data/")[2]: size for name, size in sizes.items() if "/data/" in name}
    for key, declared in found.storages.items():
        if declared > held.get(key.lower(), 0):
            raise error(
                f"a tensor of the checkpoint declares {declared:,} bytes, but there are {held.get(key.lower(), 0):,}",
                where=f"{path}: data/{key[:100]!a}",
                hint=FETCH_AGAIN,
            )


def _check_archive(
    archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], path: Path, error: type[RefcliError]
) -> None:
    """Refuse archives that are not checkpoints, are compressed, or could be read differently by torch and Python."""
    names = [_name(member).split("/") for member in members]
    if not _pickles(members):
        inside = [m.filename for m in members if m.filename.endswith(CHECKPOINT_SUFFIXES)]
        raise error(
            "this zip archive is not a checkpoint",
            where=str(path),
            hint=f"unpack it and convert {', '.join(filter(str.isprintable, inside[:5]))}" if inside else FETCH_AGAIN,
        )
    if any(parts[-1] == TORCHSCRIPT_FILE or TORCHSCRIPT_FOLDER in parts[:-1] for parts in names):
        raise error(
            "this is a TorchScript archive: a program with its tensors, not a checkpoint",
            where=str(path),
            hint="refcli runs no code from files; load it with a program you trust and save its state_dict()",
        )
    held, declared = path.stat().st_size, sum(member.file_size for member in members)
    packed = [m for m in members if m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size]
    if packed or declared > held:
        raise error(
            f"the archive declares {declared:,} bytes of content, but has {held:,}",
            where=str(path),
            hint="torch.save never compresses: do not trust this file",
        )
    with path.open("rb") as file:
        if archive.comment or _directory(file, held) != archive.start_dir:
            raise error(
                "the archive's directory is not at its stated offset",
                where=str(path),
                hint="two files may have been joined here: do not trust this file",
            )


def _pickles(members: list[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    return [member for member in members if f"/{_name(member)}".endswith("/data.pkl")]


def _name(member: zipfile.ZipInfo) -> str:
    """A member's name as torch compares it: in lower case, with forward slashes."""
    return member.orig_filename.replace("\\", "/").lower()


def _directory(file: BinaryIO, num_bytes: int) -> int | None:
    """The offset of a zip's directory as stored in its end record; None if that record is not where torch looks for it.

    Python adds the length of any data before the archive to the offset; torch does not.
    """
    file.seek(max(0, num_bytes - _END_BYTES - _LOCATOR_BYTES))
    tail = file.read()
    end = tail[-_END_BYTES:]
    if not end.startswith(_END):
        return None
    (at,) = struct.unpack("<L", end[16:20])
    if not tail.startswith(_END_64_LOCATOR):
        return int(at)
    (at_64,) = struct.unpack("<Q", tail[8:16])
    file.seek(min(at_64, num_bytes))
    end_64 = file.read(_END_64_BYTES)
    if not end_64.startswith(_END_64) or len(end_64) < _END_64_BYTES:
        return None
    (directory,) = struct.unpack("<Q", end_64[48:56])
    return int(directory) if at in (_AT_END_64, directory) else None


class _CheckpointMachine(PickleMachine):
    """Analyses a checkpoint: records names and the storages of tensors, and counts the work of calls."""

    protocol = CHECKPOINT_PROTOCOL

    def __init__(self, content: bytes | BinaryIO, num_bytes: int, limits: PickleLimits) -> None:
        super().__init__(content, max_depth=limits.depth)
        self.num_file_bytes = num_bytes
        self.limits = limits

    def unsupported(self, code: int) -> Exception:
        if code in PROTOCOL_OF:
            protocol = max(self.declared, PROTOCOL_OF[code])
            return PickleRefusedError(
                f"it was saved with pickle protocol {protocol}, refcli reads {CHECKPOINT_PROTOCOL}",
                "save it again with torch.save's default protocol",
            )
        return super().unsupported(code)

    def check(self, value: Value) -> None:
        super().check(value)
        if value.weight > self.limits.weight:
            raise self.expansion_error()

    def check_bounds(self) -> None:
        if self.steps > self.limits.steps or self.work > self.limits.weight:
            raise self.expansion_error()

    def expansion_error(self) -> PickleRefusedError:
        return PickleRefusedError("its pickle expands to far more data than a checkpoint needs")

    def add(self, target: Value, parts: Sequence[Value]) -> None:
        if not (target.is_contained and target.kind == "OBJECT"):  # objects of settings refer to each other in cycles
            super().add(target, parts)

    def numbers(self, value: int, length: int, memory: int) -> None:
        self.memory += memory
        if length == 1:
            self.integer(self.unsigned(1))
        else:
            self.take(length)
            self.push(self.number)

    def integer(self, value: int) -> None:
        self.push(Value("NUMBER", 1 + value.bit_length() // LETTERS_PER_WEIGHT, largest=abs(value)))

    def _counted(self, kind: str, length: int) -> None:
        size = self.unsigned(length)
        text = self.take(size).decode("utf-8", "replace") if size <= MAX_LINE else ""
        if not text:
            self.skip(size if size > MAX_LINE else 0)
        if re.sub(r"[^a-z]", "", text[:MAX_DIGITS].lower()) in _SLOW_CODECS:
            raise PickleRefusedError(f"it asks to encode text as {text[:20]!a}")
        self.push(Value("TEXT", 1 + size // LETTERS_PER_WEIGHT, name=text))

    def make(self, kind: str, parts: Sequence[Value], memory: int) -> None:
        super().make(kind, parts, memory)
        self.stack[-1].parts = [*parts]

    def extend(self, items: Sequence[Value]) -> None:
        super().extend(items)
        self.stack[-1].parts.extend(items)

    def check_size(self, value: Value) -> None:
        if value.largest > max(self.num_file_bytes, _SMALL_NUMBER):
            size = f"it creates an object of size {value.largest:,}, but the file has {self.num_file_bytes:,} bytes"
            raise PickleRefusedError(size)

    def _global(self) -> None:
        module, name = (self.line().decode("utf-8") for _ in range(2))
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        self.found.names.add((module, name))
        self.push(Value("GLOBAL", name=f"{module}.{name}"))

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.expect(function, "GLOBAL")
        self.expect(arguments, "TUPLE")
        self.work += arguments.weight
        self.check_size(arguments)
        kind = "DICT" if function.name in _DICTS else "LIST" if function.name in _LISTS else "OBJECT"
        made = Value(kind, name=function.name)
        self.hash_arguments(made, arguments)
        made.absorb([arguments])
        made.largest = 0
        self.check(made)
        self.check_bounds()
        self.push(made)

    def hash_arguments(self, made: Value, arguments: Value) -> None:
        """Count the keys of a dict or set made by a call: of a list of pairs, or the values themselves."""
        if made.kind != "DICT" and made.name != "builtins.set":
            return
        for item in (item for argument in arguments.parts for item in argument.parts):
            self.hash(made, item.parts[0] if item.parts else item)

    _newobj = _reduce

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if target.kind not in ("OBJECT", "DICT") or _NEVER_BUILT.fullmatch(target.name):
            raise PickleRefusedError(f"it sets the state of {target.name[:200] or 'a plain ' + target.kind.lower()!a}")
        self.work += state.weight
        self.add(target, [state])

    def _binpersid(self) -> None:
        asked = self.stack.pop()
        kinds = [part.kind for part in asked.parts[:_PERSISTENT_PARTS]]
        if kinds != ["TEXT", "GLOBAL", "TEXT", "TEXT", "NUMBER"] or asked.parts[0].name != "storage":
            raise PickleRefusedError("it refers to an outside object that is not the storage of a tensor")
        _, kind, key, _, numel = asked.parts[:_PERSISTENT_PARTS]
        sort = kind.name.rpartition(".")[2].removesuffix("Storage")
        num_bytes = numel.largest * (_STORAGE_BYTES | _COMPLEX_BYTES).get(sort, 1)
        self.found.storages[key.name] = max(num_bytes, self.found.storages.get(key.name, 0))
        self.check_size(numel)
        self.push(Value("STORAGE"))
