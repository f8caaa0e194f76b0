"""What a pickle asks for and unfolds to, told from its opcodes before anything of it is built."""

from __future__ import annotations

import pickletools
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

from refcli.errors import WeightsError

PROTOCOL = 2
"""The last protocol of which torch's restricted unpickler knows the opcodes; torch.save writes this one."""
MAX_STEPS = 3_000_000
"""Opcodes. The largest OneRef model with all of its optimiser state takes 150 thousand."""
MAX_WEIGHT = 50_000_000
"""Values and letters, counted as often as they are met: what is shared weighs again. The same model: 515 thousand."""
MAX_DEPTH = 1_000
"""Values inside values. Python dies of hashing a tuple that is much deeper."""
MIN_LARGEST_NUMBER = 1 << 20
"""Up to this, a call may be given any number; beyond, none that is larger than the file."""
SLOW_CODECS = frozenset({"punycode", "idna"})
"""Python's codecs that take time by the square of the length."""
PUTS, GETS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"}), frozenset({"GET", "BINGET", "LONG_BINGET"})
CALLS = frozenset({"REDUCE", "NEWOBJ"})
ADDITIONS = frozenset({"APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"})
"""Opcodes that change the first of the values that they take."""
FETCH_AGAIN = "the file may be cut off or not be a checkpoint at all: download it again"
NO_CHECKPOINT = "nothing was built of it; is this a file of weights?"


class _Value:
    """What is known of a value without building it; it grows with the container that it stands for."""

    __slots__ = ("depth", "largest", "weight")

    def __init__(self, weight: int, largest: int = 0) -> None:
        self.weight, self.largest, self.depth = weight, largest, 0

    def take(self, parts: Sequence[_Value]) -> None:
        for part in parts:
            self.weight += part.weight
            self.largest = max(self.largest, part.largest)
            self.depth = max(self.depth, part.depth + 1)


@dataclass
class _Machine:
    """The stack and the memo of an unpickler that builds nothing."""

    stack: list[_Value]
    marks: list[int]
    memo: dict[int, _Value]
    work: int = 0
    """The weight of everything that was hashed or handed to a call."""

    def pop(self, opcode: pickletools.OpcodeInfo) -> list[_Value]:
        """Take what an opcode takes off the stack."""
        wanted, start = list(opcode.stack_before), len(self.stack)
        if pickletools.markobject in wanted:
            start, wanted = self.marks.pop(), wanted[: wanted.index(pickletools.markobject)]
        start = max(0, start - len(wanted))
        parts = self.stack[start:]
        del self.stack[start:]
        return parts


def survey(pickle: bytes | IO[bytes], *, num_bytes: int, where: str) -> set[tuple[str, str]]:
    """Every (module, name) that a pickle asks for, under the names of Python 3, if it is no bomb.

    Args:
        pickle: read up to its end, STOP.
        num_bytes: size of the whole file.
        where: for the errors.

    Raises:
        WeightsError: broken, of a protocol that torch does not read here, or one that would unfold to more than any
            checkpoint holds.
    """
    asked: set[tuple[str, str]] = set()
    machine, protocol, last = _Machine([], [], {}), 0, ""
    try:
        for step, (opcode, arg, _) in enumerate(pickletools.genops(pickle)):
            name = opcode.name
            if name == "PROTO":
                protocol = int(arg or 0)
            elif name == "GLOBAL":
                asked.add(_modern(*str(arg).split(" ", 1)))
            if opcode.proto > PROTOCOL:
                saved = f"it was saved with pickle protocol {max(protocol, opcode.proto)}, refcli reads {PROTOCOL}"
                raise _refusal(saved, where, hint="save it again as torch.save does if nothing else is asked for")
            if isinstance(arg, str) and re.sub(r"[^a-z]", "", arg.lower()) in SLOW_CODECS:
                raise _refusal(f"it wants text encoded as {arg[:20]!a}", where)
            value = _follow(machine, opcode, arg, step=step, last=last)
            if step > MAX_STEPS or max(value.weight, machine.work) > MAX_WEIGHT or value.depth > MAX_DEPTH:
                raise _refusal("its pickle unfolds to far more than a checkpoint needs", where)
            if name in CALLS:
                if value.largest > max(num_bytes, MIN_LARGEST_NUMBER):
                    size = f"it makes something of size {value.largest:,}, and the file has {num_bytes:,} bytes"
                    raise _refusal(size, where)
                value.largest = 0
            last = last if name in PUTS else name
    except WeightsError:
        raise
    except Exception as problem:  # a broken pickle can fail in any way
        hint = f"{str(problem) or type(problem).__name__}; {FETCH_AGAIN}"
        raise WeightsError("the checkpoint is damaged", where=where, hint=hint) from problem
    return asked


def _follow(machine: _Machine, opcode: pickletools.OpcodeInfo, arg: Any, *, step: int, last: str) -> _Value:  # noqa: ANN401
    """Do what an opcode does to the stack and the memo; returns the value that it leaves on top."""
    name, stack = opcode.name, machine.stack
    if name == "MARK":
        machine.marks.append(len(stack))
        return _Value(0)
    if name in PUTS:
        machine.memo[arg] = stack[-1]
        return stack[-1]
    if name in GETS:
        stack.append(machine.memo[arg])
        return stack[-1]
    parts = machine.pop(opcode)
    if name in ADDITIONS or name in CALLS:
        machine.work += sum(part.weight for part in parts[1:])
    if name in CALLS and last in GETS:  # a tuple made earlier: a list in it may have grown since, to as many values
        machine.work += step
    if name in ADDITIONS:
        value, parts = parts[0], parts[1:]
    else:
        value = _Value(1 + (len(arg) if isinstance(arg, str | bytes) else 0), abs(arg) if isinstance(arg, int) else 0)
    value.take(parts)
    stack.extend([value] * len(opcode.stack_after))
    return value


def _modern(module: str, name: str) -> tuple[str, str]:
    """Names of Python 2 as torch translates them."""
    return NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))


def _refusal(reason: str, where: str, *, hint: str = NO_CHECKPOINT) -> WeightsError:
    return WeightsError(f"the checkpoint is not read: {reason}", where=where, hint=hint)
