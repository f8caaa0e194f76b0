"""What a pickle asks for and expands to, read from its opcodes before any of it is loaded."""

from __future__ import annotations

import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Sequence
from typing import BinaryIO

from refcli.data.reading.pickle_machine import (
    LETTERS_PER_WEIGHT,
    MAX_DIGITS,
    MAX_LINE,
    SINCE,
    Machine,
    RefusedError,
    Surveyed,
    Value,
)
from refcli.errors import DataError, RefcliError

CHECKPOINT_PROTOCOL = 2
"""The last protocol of which torch's restricted unpickler knows the opcodes; torch.save writes this one."""
MAX_STEPS = 3_000_000
"""Opcodes of a checkpoint. The largest OneRef model with all of its optimiser state takes 150 thousand."""
MAX_WEIGHT = 50_000_000
"""Values, counted as often as they are met: what is shared weighs again. The same model: 250 thousand."""
MAX_DEPTH = 1_000
"""Values inside values in a checkpoint. Python dies of hashing a tuple that is much deeper."""
MAX_DATA_DEPTH = 100
"""The same in plain data; annotation files have 6."""
MAX_DATA_WEIGHT, MAX_WEIGHT_PER_BYTE = 2_000_000, 16
"""Plain data may weigh so much and, beyond that, so much for each byte of the pickle; unshared values: 1 at most."""
MAX_MEMORY, MAX_MEMORY_PER_BYTE = 128 << 20, 48
"""The same for the memory in bytes that its values take when built; known annotation files: 3 to 20 a byte."""
MAX_MEMORY_PER_STORED_BYTE = 256
"""And for each byte of the file, in which the pickle may be compressed."""
MAX_UNPACKED, MAX_UNPACKED_PER_BYTE = 64 << 20, 64
"""The same for the pickle's own bytes: annotations compress to an eighth."""
MIN_LARGEST_NUMBER = 1 << 20
"""Up to this, a call may be given any number; beyond, none that is larger than the file."""
SLOW_CODECS = frozenset({"punycode", "idna"})
"""Python's codecs that take time by the square of the length."""
FETCH_AGAIN = "the file may be cut off or not be a checkpoint at all: download it again"
NO_CHECKPOINT = "nothing in it was loaded; is this a weights file?"
NO_DATA = "nothing in it was loaded; re-save as JSON, or as a pickle of plain lists, dicts, strings and numbers"

_DICTS = frozenset({"collections.OrderedDict", "collections.Counter", "collections.defaultdict"})
_LISTS = frozenset({"collections.deque"})
_NEVER_BUILT = re.compile(
    r"torch\.(\w+|_.*|(nn\.parameter|serialization|storage|cuda)\..*)|(builtins|_codecs)\..*|collections\.Counter|"
)
"""What no checkpoint gives a state to: torch would hand it on, to `set_` of a tensor for instance."""
_STORAGE_BYTES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2}
_COMPLEX_BYTES = {"ComplexDouble": 16, "ComplexFloat": 8}
_PERSISTENT_PARTS = 5


def survey(content: bytes | BinaryIO, *, num_bytes: int, where: str, error: type[RefcliError]) -> Surveyed:
    """What a checkpoint's pickle asks for, if it is no bomb.

    Args:
        content: the pickle, read up to its end, STOP.
        num_bytes: size of the whole file.
        where: for the errors, which are of the class `error`.

    Raises:
        RefcliError: broken, of a protocol that torch does not read here, or one that would unfold to more than any
            checkpoint holds.
    """
    machine = _CheckpointMachine(content, num_bytes)
    try:
        machine.run()
    except RefusedError as refusal:
        raise error(f"the checkpoint is not read: {refusal}", where=where, hint=refusal.hint or NO_CHECKPOINT) from None
    except Exception as problem:  # a broken pickle can fail in any way
        hint = f"{str(problem) or type(problem).__name__}; {FETCH_AGAIN}"
        raise error("the checkpoint is damaged", where=where, hint=hint) from problem
    return machine.found


def survey_plain(content: bytes | BinaryIO, *, num_stored: int, where: str) -> int:
    """Make sure that Python's unpickler, allowed no global, takes time and memory in proportion to a pickle of data.

    Looks through it up to its end, or up to the first opcode that asks for a global or for an object outside, at which
    such an unpickler stops.

    Args:
        content: the pickle, read up to its end.
        num_stored: size of the file, in which it may be compressed.
        where: for the errors.

    Returns:
        Where it ends in what was read.

    Raises:
        DataError: broken, or no plain data: one that unfolds to far more than it shows.
    """
    machine = _DataMachine(content, num_stored)
    try:
        machine.run()
    except RefusedError as refusal:
        raise DataError(f"the pickle is not read: {refusal}", where=where, hint=NO_DATA) from None
    except DataError:  # of the stream
        raise
    except Exception as problem:  # a broken pickle can fail in any way
        raise DataError(
            f"the pickle is truncated or broken ({type(problem).__name__}: {problem})",
            where=where,
            hint="copy or download the file again",
        ) from problem
    return machine.found.num_bytes


def max_unpacked(num_stored: int) -> int:
    """Bytes that a pickle may have which a file of so many bytes holds compressed."""
    return MAX_UNPACKED + MAX_UNPACKED_PER_BYTE * num_stored


class _DataMachine(Machine):
    """Plain data: everything is in proportion to the bytes that were read, and a global is the end."""

    def __init__(self, content: bytes | BinaryIO, num_stored: int) -> None:
        super().__init__(content, max_depth=MAX_DATA_DEPTH)
        self.num_stored = num_stored
        self.weight = 0
        """The greatest of a value so far."""

    def count(self, value: Value) -> None:
        super().count(value)
        self.weight = max(self.weight, value.weight)
        if self.weight > MAX_DATA_WEIGHT:
            self.check_bounds()

    def check_bounds(self) -> None:
        num_read = self.before + self.at
        memory = MAX_MEMORY + min(MAX_MEMORY_PER_BYTE * num_read, MAX_MEMORY_PER_STORED_BYTE * self.num_stored)
        weight = MAX_DATA_WEIGHT + MAX_WEIGHT_PER_BYTE * num_read
        if max(self.weight, self.work) > weight or self.memory > memory or num_read > max_unpacked(self.num_stored):
            raise self.bomb()

    def bomb(self) -> RefusedError:
        return RefusedError("it expands to far more data, or deeper nesting, than annotations need")

    def _forbidden(self) -> None:
        self.is_done = True

    _global = _stack_global = _inst = _persid = _binpersid = _forbidden


class _CheckpointMachine(Machine):
    """A checkpoint: names are noted, calls are counted, and so are the tensors' storages."""

    protocol = CHECKPOINT_PROTOCOL

    def __init__(self, content: bytes | BinaryIO, num_bytes: int) -> None:
        super().__init__(content, max_depth=MAX_DEPTH)
        self.num_file_bytes = num_bytes

    def unknown(self, code: int) -> Exception:
        if code in SINCE:
            protocol = max(self.declared, SINCE[code])
            return RefusedError(
                f"it was saved with pickle protocol {protocol}, refcli reads {CHECKPOINT_PROTOCOL}",
                "save it again with torch.save's default protocol",
            )
        return super().unknown(code)

    def count(self, value: Value) -> None:
        super().count(value)
        if value.weight > MAX_WEIGHT:
            raise self.bomb()

    def check_bounds(self) -> None:
        if self.steps > MAX_STEPS or self.work > MAX_WEIGHT:
            raise self.bomb()

    def bomb(self) -> RefusedError:
        return RefusedError("its pickle expands to far more data than a checkpoint needs")

    def add(self, target: Value, parts: Sequence[Value]) -> None:
        if not (target.is_held and target.kind == "OBJECT"):  # objects of settings hold one another in circles
            super().add(target, parts)

    def numbers(self, value: int, length: int, memory: int) -> None:
        self.memory += memory
        if length == 1:
            self.integer(self.whole(1))
        else:
            self.take(length)
            self.push(self.number)

    def integer(self, value: int) -> None:
        self.push(Value("NUMBER", 1 + value.bit_length() // LETTERS_PER_WEIGHT, largest=abs(value)))

    def _counted(self, kind: str, length: int) -> None:
        size = self.whole(length)
        text = self.take(size).decode("utf-8", "replace") if size <= MAX_LINE else ""
        if not text:
            self.skip(size if size > MAX_LINE else 0)
        if re.sub(r"[^a-z]", "", text[:MAX_DIGITS].lower()) in SLOW_CODECS:
            raise RefusedError(f"it asks to encode text as {text[:20]!a}")
        self.push(Value("TEXT", 1 + size // LETTERS_PER_WEIGHT, name=text))

    def make(self, kind: str, parts: Sequence[Value], memory: int) -> None:
        super().make(kind, parts, memory)
        self.stack[-1].parts = [*parts]

    def extend(self, items: Sequence[Value]) -> None:
        super().extend(items)
        self.stack[-1].parts.extend(items)

    def check_size(self, value: Value) -> None:
        if value.largest > max(self.num_file_bytes, MIN_LARGEST_NUMBER):
            size = f"it creates an object of size {value.largest:,}, but the file has {self.num_file_bytes:,} bytes"
            raise RefusedError(size)

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
        made.take([arguments])
        made.largest = 0
        self.count(made)
        self.check_bounds()
        self.push(made)

    def hash_arguments(self, made: Value, arguments: Value) -> None:
        """Count the keys that a call makes a dict or a set of: a list of pairs, or the values themselves."""
        if made.kind != "DICT" and made.name != "builtins.set":
            return
        for item in (item for argument in arguments.parts for item in argument.parts):
            self.hash(made, item.parts[0] if item.parts else item)

    _newobj = _reduce

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if target.kind not in ("OBJECT", "DICT") or _NEVER_BUILT.fullmatch(target.name):
            raise RefusedError(f"it sets the state of {target.name[:200] or 'a plain ' + target.kind.lower()!a}")
        self.work += state.weight
        self.add(target, [state])

    def _binpersid(self) -> None:
        asked = self.stack.pop()
        kinds = [part.kind for part in asked.parts[:_PERSISTENT_PARTS]]
        if kinds != ["TEXT", "GLOBAL", "TEXT", "TEXT", "NUMBER"] or asked.parts[0].name != "storage":
            raise RefusedError("it refers to an outside object that is not the storage of a tensor")
        _, kind, key, _, numel = asked.parts[:_PERSISTENT_PARTS]
        sort = kind.name.rpartition(".")[2].removesuffix("Storage")
        num_bytes = numel.largest * (_STORAGE_BYTES | _COMPLEX_BYTES).get(sort, 1)
        self.found.storages[key.name] = max(num_bytes, self.found.storages.get(key.name, 0))
        self.check_size(numel)
        self.push(Value("STORAGE"))
