"""Which tensors do not fit a model, each with what is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

MAX_NAMED = 5
"""Tensors that a message of one line names."""


class TensorLike(Protocol):
    """What is known of a tensor without its numbers: a tensor on `meta`, or an entry of a file's header."""

    @property
    def shape(self) -> Sequence[int]:
        """Its sides."""

    @property
    def dtype(self) -> object:
        """Its type, by a name that can be shown."""

    def is_floating_point(self) -> bool:
        """Whether it holds floating-point numbers."""


class KeyRow(NamedTuple):
    """One tensor that does not fit: under its official name, or under ours where the converted one is at fault."""

    name: str
    problem: Literal["missing", "unexpected", "wrong shape", "wrong type", "NaN or infinity"]
    found: tuple[int, ...] | str | None = None
    """Its shape, or what it holds where the type is wrong."""
    wanted: tuple[int, ...] | str | None = None

    def __str__(self) -> str:
        """As a row of a table."""
        both = [f"has {self.found}"] if self.found is not None else []
        both += [f"wants {self.wanted}"] if self.wanted is not None else []
        return f"{self.problem:15}  {self.name}  {', '.join(both)}".rstrip()

    def sentence(self, prefix: str = "") -> str:
        """As a line of its own; `prefix` goes before the name."""
        says = {
            "missing": "is missing",
            "unexpected": "is not part of the model",
            "wrong shape": f"has shape {self.found} instead of {self.wanted}",
            "wrong type": f"holds {self.found} instead of {self.wanted}",
            "NaN or infinity": "holds NaN or infinity",
        }
        return f"{prefix}{self.name} {says[self.problem]}"


def misfits(wanted: Mapping[str, TensorLike], given: Mapping[str, TensorLike]) -> list[KeyRow]:
    """Every tensor that is missing, unexpected, misshapen, or of whole numbers where the other is not; by name.

    Any floating-point type will do for any other, and so will any type of whole numbers.
    """
    rows = [KeyRow(name, "missing", wanted=tuple(wanted[name].shape)) for name in wanted.keys() - given.keys()]
    for name, tensor in given.items():
        shape = tuple(tensor.shape)
        if name not in wanted:
            rows.append(KeyRow(name, "unexpected", shape))
        elif shape != tuple(wanted[name].shape):
            rows.append(KeyRow(name, "wrong shape", shape, tuple(wanted[name].shape)))
        elif tensor.is_floating_point() != wanted[name].is_floating_point():
            right = "floating-point numbers" if wanted[name].is_floating_point() else "whole numbers"
            rows.append(KeyRow(name, "wrong type", str(tensor.dtype).removeprefix("torch."), right))
    return sorted(rows, key=lambda row: row.name)


def summary(rows: Sequence[KeyRow], *, prefix: str = "") -> str:
    """The first few rows as one line that says how many there are; `prefix` goes before every name."""
    more = f"; and {len(rows) - MAX_NAMED} more" if len(rows) > MAX_NAMED else ""
    tensors = "1 tensor" if len(rows) == 1 else f"{len(rows)} tensors"
    return f"({tensors}): " + "; ".join(row.sentence(prefix) for row in rows[:MAX_NAMED]) + more
