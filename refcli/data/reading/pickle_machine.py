"""Analyse a pickle without loading it: follow its opcodes, and track the size, depth and kind of every value."""

from __future__ import annotations

import io
import pickle
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial, partialmethod
from typing import BinaryIO, ClassVar

LAST_PROTOCOL = 5
MAX_LINE = 1 << 16
"""Maximum bytes of one line in the text opcodes of protocol 0."""
MAX_MEMO_INDEX = 1 << 20
"""Python's unpickler allocates its memo up to the largest index; a higher one is allowed after as many opcodes."""
MAX_DIGITS = 1_000
"""Maximum digits of a whole number; Python parses them in quadratic time, and refuses more than 4,300."""
MAX_FRAME = 1 << 31
"""Python's unpickler allocates a frame before it reads it; real frames have 64 KiB."""
LETTERS_PER_WEIGHT = 64
_CHUNK = 1 << 20
_CHECKED_EVERY = 1024
"""Number of opcodes between checks of the limits."""
_POINTER, _FLOAT, _WHOLE, _TEXT, _LIST, _DICT, _DICT_ENTRY, _SET_ENTRY, _MEMO = 8, 32, 40, 56, 64, 184, 64, 80, 100
"""Approximate bytes of memory in CPython."""
_CODES = {
    code: name
    for name, code in vars(pickle).items()
    if name in pickle.__all__ and isinstance(code, bytes) and len(code) == 1
}
_LATER = {3: b"BC", 4: b"\x8c\x8d\x8e\x8f\x90\x91\x92\x93\x94\x95", 5: b"\x96\x97\x98"}
"""Protocol above 2 -> the opcodes that it introduced."""
PROTOCOL_OF = {code: protocol for protocol, codes in _LATER.items() for code in codes}
_RUNS = {ord(start): re.compile(pattern, re.DOTALL) for start, pattern in ((b"G", rb"(?:G.{8})+"), (b"K", rb"(?:K.)+"))}
_LENGTHS = {
    **dict.fromkeys(("SHORT_BINSTRING", "SHORT_BINUNICODE", "SHORT_BINBYTES"), ("TEXT", 1)),
    **dict.fromkeys(("BINSTRING", "BINUNICODE", "BINBYTES"), ("TEXT", 4)),
    **dict.fromkeys(("BINUNICODE8", "BINBYTES8"), ("TEXT", 8)),
    "BYTEARRAY8": ("OTHER", 8),
}
"""Opcodes of text and bytes: the kind of value and the number of bytes of its length field."""


@dataclass
class PickleSurvey:
    """What a pickle refers to."""

    names: set[tuple[str, str]] = field(default_factory=set)
    """Every (module, name), under the names of Python 3."""
    storages: dict[str, int] = field(default_factory=dict)
    """Storage key -> bytes that the pickle declares for this torch storage."""
    num_bytes: int = 0
    """Length of the pickle."""

    def merge(self, other: PickleSurvey) -> None:
        """Add the names and storages of another pickle of the same file."""
        self.names |= other.names
        for key, num_bytes in other.storages.items():
            self.storages[key] = max(num_bytes, self.storages.get(key, 0))


class PickleRefusedError(Exception):
    """A well-formed pickle is refused; the message is the reason."""

    def __init__(self, reason: str, hint: str | None = None) -> None:
        super().__init__(reason)
        self.hint = hint


class Value:
    """The known properties of a value that is not built; a container's properties change as it is filled."""

    __slots__ = ("depth", "is_contained", "kind", "largest", "name", "num_slow_keys", "parts", "weight")

    def __init__(self, kind: str, weight: int = 1, *, largest: int = 0, name: str = "") -> None:
        self.kind, self.weight, self.largest, self.name = kind, weight, largest, name
        """`weight` counts values at every reference; `largest` is the largest number in the value."""
        self.depth = self.num_slow_keys = 0
        self.is_contained = False
        """Whether another value contains it and includes its weight: from then on it must not change."""
        self.parts: list[Value] = []
        """The items of a tuple or list in a checkpoint; not kept for plain data."""

    def absorb(self, parts: Sequence[Value]) -> None:
        """Become a container of these values too."""
        weight, largest, depth = self.weight, self.largest, self.depth
        for part in parts:  # the innermost loop of a large file
            weight += part.weight
            if part.largest > largest:
                largest = part.largest
            if part.depth >= depth:
                depth = part.depth + 1
            part.is_contained = True
        self.weight, self.largest, self.depth = weight, largest, depth


class PickleMachine(ABC):
    """An unpickler that builds nothing: its stack and memo hold `Value`s. Subclasses set the limits."""

    protocol: ClassVar[int] = LAST_PROTOCOL
    number: ClassVar[Value] = Value("NUMBER")

    def __init__(self, content: bytes | BinaryIO, *, max_depth: int) -> None:
        self.max_depth = max_depth
        self.stream = io.BytesIO(content) if isinstance(content, bytes) else content
        self.data, self.at, self.before = b"", 0, 0
        """A block of the stream, the position in it, and the number of bytes before it."""
        self.stack: list[Value] = []
        self.outer: list[list[Value]] = []
        """The stacks below each mark."""
        self.memo: dict[int, Value] = {}
        self.texts: dict[int, Value] = {}
        self.steps = self.work = self.memory = self.declared = 0
        """Opcodes; weight of all hashed values and arguments; memory of values in bytes; declared protocol."""
        self.found = PickleSurvey()
        self.is_done = False
        self.table = self._table()

    def _table(self) -> list[Callable[[], None] | None]:
        """Opcode -> its method; None for refused opcodes."""
        table: list[Callable[[], None] | None] = [None] * 256
        for (code,), name in _CODES.items():
            if PROTOCOL_OF.get(code, 0) > self.protocol:
                continue
            if handle := getattr(self, f"_{name.lower()}", None):
                table[code] = handle
            elif name in _LENGTHS:
                table[code] = partial(self._counted, *_LENGTHS[name])
        return table

    # The pickle's bytes.

    def run(self) -> None:
        """Follow the opcodes to the end.

        Raises:
            PickleRefusedError: the pickle breaks a rule.
            Exception: of any class, for a broken pickle.
        """
        table = self.table
        while not self.is_done:
            if self.at < len(self.data):
                code = self.data[self.at]
                self.at += 1
            else:
                code = self.take(1)[0]
            self.steps += 1
            handle = table[code]
            if handle is None:
                raise self.unsupported(code)
            handle()
            if not self.steps % _CHECKED_EVERY:
                self.check_bounds()
        self.check_bounds()
        self.found.num_bytes = self.before + self.at

    def unsupported(self, code: int) -> Exception:
        """The error for an opcode that has no method."""
        name = _CODES.get(code.to_bytes(1, "little"))
        if name:
            return PickleRefusedError(f"it uses the opcode {name}, which files of this kind do not need")
        return ValueError(f"at position {self.before + self.at - 1:,}: opcode {code:#x} unknown")

    def take(self, count: int) -> bytes:
        """Read the next bytes of the pickle."""
        if self.at + count > len(self.data):
            self._refill(count)
        start, self.at = self.at, self.at + count
        return self.data[start : self.at]

    def _refill(self, count: int) -> None:
        rest = self.data[self.at :]
        more = self.stream.read(max(_CHUNK, count - len(rest)))
        if len(rest) + len(more) < count:
            raise EOFError("pickle exhausted before seeing STOP")
        self.before += self.at
        self.data, self.at = rest + more, 0

    def skip(self, count: int) -> None:
        """Skip bytes without keeping them."""
        if self.at + count <= len(self.data):
            self.at += count
            return
        while count:
            step = min(count, _CHUNK)
            self.take(step)
            count -= step

    def unsigned(self, length: int) -> int:
        """Read a little-endian number of `length` bytes."""
        if length == 1 and self.at < len(self.data):
            self.at += 1
            return self.data[self.at - 1]
        return int.from_bytes(self.take(length), "little")

    def line(self) -> bytes:
        """Read up to the next line end."""
        end = self.data.find(b"\n", self.at)
        if end < 0:
            if len(self.data) - self.at <= MAX_LINE:
                rest = self.data[self.at :]
                self.before += self.at
                self.data, self.at = rest + self.stream.read(_CHUNK), 0
            end = self.data.find(b"\n", self.at)
        if end < 0 and len(self.data) - self.at <= MAX_LINE:
            raise EOFError("pickle exhausted before the end of a line")
        if end < 0 or end - self.at > MAX_LINE:
            raise PickleRefusedError(f"one of its lines is longer than {MAX_LINE:,} bytes")
        start, self.at = self.at, end + 1
        return self.data[start:end]

    # Values.

    @abstractmethod
    def check_bounds(self) -> None:
        """Raise `expansion_error` if the work or memory so far is beyond the limits."""

    def push(self, value: Value) -> None:
        self.stack.append(value)

    def text_of(self, num_bytes: int) -> Value:
        """The value of a text of this length; equal lengths share one object."""
        self.memory += _TEXT + num_bytes + (3 * num_bytes if num_bytes >= LETTERS_PER_WEIGHT else 0)
        weight = 1 + num_bytes // LETTERS_PER_WEIGHT
        if weight not in self.texts:
            self.texts[weight] = Value("TEXT", weight)
        return self.texts[weight]

    def check(self, value: Value) -> None:
        """Check a container after it was made or filled."""
        if value.depth > self.max_depth:
            raise self.expansion_error()

    @abstractmethod
    def expansion_error(self) -> PickleRefusedError:
        """The error for a pickle that expands beyond the limits."""

    def add(self, target: Value, parts: Sequence[Value]) -> None:
        """Add values to a container."""
        if target.is_contained or target in parts:
            raise PickleRefusedError("it changes a value that is already part of another one, as pickle bombs do")
        target.absorb(parts)
        self.check(target)

    def pop_mark(self) -> list[Value]:
        """Pop the values above the topmost mark."""
        items, self.stack = self.stack, self.outer.pop()
        return items

    def make(self, kind: str, parts: Sequence[Value], memory: int) -> None:
        value = Value(kind)
        value.absorb(parts)
        self.memory += memory + _POINTER * len(parts)
        self.check(value)
        self.push(value)

    def hash(self, target: Value, key: Value) -> None:
        """Count the work of hashing a key: text hashes are random, but other keys can be chosen to collide."""
        if key.kind in ("LIST", "DICT", "OTHER"):
            raise ValueError(f"a {key.kind.lower()} cannot be a key")
        if key.kind == "TEXT":
            self.work += key.weight
        else:
            target.num_slow_keys += 1
            self.work += key.weight * target.num_slow_keys

    def expect(self, value: Value, kind: str) -> None:
        if value.kind != kind:
            raise ValueError(f"a value is used as a {kind.lower()} but is not one")

    # Opcodes.

    def _proto(self) -> None:
        self.declared = self.unsigned(1)
        if self.declared > LAST_PROTOCOL:
            raise ValueError(f"unsupported pickle protocol: {self.declared}")

    def _frame(self) -> None:
        if self.unsigned(8) > MAX_FRAME:
            raise ValueError("a frame is too large")

    def _stop(self) -> None:
        if self.outer:
            raise ValueError("it ends inside a mark")
        self.stack.pop()
        self.is_done = True

    def _mark(self) -> None:
        if len(self.outer) >= 2 * self.max_depth:
            raise self.expansion_error()
        self.outer.append(self.stack)
        self.stack = []

    def remember(self, index: int) -> None:
        """Store the topmost value in the memo."""
        if index > max(MAX_MEMO_INDEX, self.steps):
            raise PickleRefusedError(
                f"it stores a value under the index {index:,}, far beyond the number of its values"
            )
        self.memory += _MEMO
        self.memo[index] = self.stack[-1]

    def index(self, length: int | None) -> int:
        """Read a memo index: a binary number of `length` bytes, or a line of digits."""
        if length is not None:
            return self.unsigned(length)
        text = self.line()
        if not text.isdigit() or len(text) > len(str(1 << 64)):
            raise ValueError(f"an index is not a number: {text[:20]!r}")
        return int(text)

    def _put(self, length: int | None = None) -> None:
        self.remember(self.index(length))

    _binput, _long_binput = partialmethod(_put, 1), partialmethod(_put, 4)

    def _memoize(self) -> None:
        self.remember(len(self.memo))

    def recall(self, index: int) -> None:
        """Push a value of the memo."""
        self.memory += _POINTER
        self.push(self.memo[index])

    def _get(self, length: int | None = None) -> None:
        self.recall(self.index(length))

    _binget, _long_binget = partialmethod(_get, 1), partialmethod(_get, 4)

    def numbers(self, value: int, length: int, memory: int) -> None:
        """Push a number and all numbers of the same opcode that directly follow it."""
        run = _RUNS[value].match(self.data, self.at - 1) if self.at else None
        count = (run.end() - run.start()) // (1 + length) if run else 0
        if run and count:
            self.at = run.end()
        else:
            self.take(length)
            count = 1
        self.memory += count * memory
        self.stack.extend([self.number] * count)
        if count > _CHECKED_EVERY:
            self.check_bounds()

    def _binfloat(self) -> None:
        self.numbers(ord("G"), 8, _FLOAT)

    def _binint1(self) -> None:
        self.numbers(ord("K"), 1, _POINTER)

    def integer(self, value: int) -> None:
        self.memory += _WHOLE
        self.push(self.number)

    def _binint(self) -> None:
        self.integer(int.from_bytes(self.take(4), "little", signed=True))

    def _binint2(self) -> None:
        self.integer(self.unsigned(2))

    def _long1(self) -> None:
        self.integer(int.from_bytes(self.take(self.unsigned(1)), "little", signed=True))

    def _long4(self) -> None:
        length = self.unsigned(4)
        if length > MAX_DIGITS:
            raise PickleRefusedError(f"it holds a whole number of {length:,} bytes")
        self.integer(int.from_bytes(self.take(length), "little", signed=True))

    def _int(self) -> None:
        text = self.line()
        if len(text) > MAX_DIGITS:
            raise PickleRefusedError(f"it holds a whole number of {len(text):,} digits")
        self.integer(0)

    _long = _int

    def _float(self) -> None:
        self.line()
        self.memory += _FLOAT
        self.push(self.number)

    def _string(self) -> None:
        self.push(self.text_of(len(self.line())))

    _unicode = _string

    def _counted(self, kind: str, length: int) -> None:
        size = self.unsigned(length)
        self.skip(size)
        value = self.text_of(size)
        self.push(value if kind == "TEXT" else Value(kind, value.weight))

    def _empty(self, kind: str, memory: int) -> None:
        self.memory += memory
        self.push(Value(kind))

    _empty_list = partialmethod(_empty, "LIST", _LIST)
    _empty_dict = partialmethod(_empty, "DICT", _DICT)
    _empty_set = partialmethod(_empty, "SET", _DICT)

    def _none(self) -> None:
        self.memory += _POINTER
        self.push(self.number)

    _newtrue = _newfalse = _none

    def _empty_tuple(self) -> None:
        self.make("TUPLE", (), 0)

    def _tuple(self) -> None:
        self.make("TUPLE", self.pop_mark(), _TEXT)

    def _tuple_of(self, count: int) -> None:
        parts = self.stack[-count:]
        if len(parts) < count:
            raise ValueError("the stack has too few values for a tuple")
        del self.stack[-count:]
        self.make("TUPLE", parts, _TEXT)

    _tuple1, _tuple2, _tuple3 = partialmethod(_tuple_of, 1), partialmethod(_tuple_of, 2), partialmethod(_tuple_of, 3)

    def _list(self) -> None:
        self.make("LIST", self.pop_mark(), _LIST)

    def _append(self) -> None:
        self.extend([self.stack.pop()])

    def _appends(self) -> None:
        self.extend(self.pop_mark())

    def extend(self, items: Sequence[Value]) -> None:
        target = self.stack[-1]
        self.expect(target, "LIST")
        self.add(target, items)
        self.memory += _POINTER * len(items)

    def _dict(self) -> None:
        items = self.pop_mark()
        self._empty_dict()
        self.set_items(items)

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def _setitems(self) -> None:
        self.set_items(self.pop_mark())

    def set_items(self, items: Sequence[Value]) -> None:
        target = self.stack[-1]
        self.expect(target, "DICT")
        if len(items) % 2:
            raise ValueError("an odd number of items for a dict")
        for key in items[::2]:
            self.hash(target, key)
        self.add(target, items)
        self.memory += _DICT_ENTRY * len(items) // 2

    def _additems(self) -> None:
        items = self.pop_mark()
        target = self.stack[-1]
        self.expect(target, "SET")
        self._fill(target, items)

    def _frozenset(self) -> None:
        items = self.pop_mark()
        self._empty_set()
        self._fill(self.stack[-1], items)

    def _fill(self, target: Value, items: Sequence[Value]) -> None:
        for item in items:
            self.hash(target, item)
        self.add(target, items)
        self.memory += _SET_ENTRY * len(items)
