"""The tensors of a weights directory: read from safetensors files, compared with a model's, and assigned to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from refcli.errors import WeightsError

DAMAGE = (SafetensorError, OSError, ValueError, RuntimeError, LookupError)
"""Exceptions from reading a damaged safetensors file; a type unknown to safetensors raises torch's own errors."""
MAX_NAMED = 5
"""Maximum number of tensors named in a one-line message."""


class TensorLike(Protocol):
    """A tensor without its values: one on `meta`, or an entry of a file's header."""

    @property
    def shape(self) -> Sequence[int]:
        """Its sides."""

    @property
    def dtype(self) -> object:
        """Its type; str() names it."""

    def is_floating_point(self) -> bool:
        """Whether it holds floating-point numbers."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file, as its header describes it."""

    shape: tuple[int, ...]
    dtype: str
    """The type as safetensors names it, such as F32."""

    def is_floating_point(self) -> bool:
        """Whether it holds floating-point numbers."""
        return self.dtype.startswith(("F", "BF"))

    @property
    def numel(self) -> int:
        """Number of values."""
        return prod(self.shape)


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Name, shape and type of every tensor of a safetensors file, from its header.

    Raises:
        WeightsError: the file is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return {name: StoredTensor(tuple(each.get_shape()), each.get_dtype()) for name, each in slices.items()}
    except DAMAGE as problem:
        raise WeightsError("the file is damaged", where=str(path), hint=str(problem)) from problem


def non_finite_tensors(path: Path) -> list[str]:
    """The names of the tensors of a safetensors file that hold NaN or infinity.

    Raises:
        WeightsError: the file is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118 - not a mapping
            return [name for name, tensor in tensors if not is_finite(tensor)]
    except DAMAGE as problem:
        raise WeightsError("the file is damaged", where=str(path), hint=str(problem)) from problem


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def read_tensors(path: Path, *, what: str = "the model file") -> dict[str, Tensor]:
    """The tensors of a safetensors file; `what` names it in the error.

    Raises:
        WeightsError: the file is damaged.
    """
    try:
        return load_file(path)
    except DAMAGE as problem:
        raise WeightsError(f"{what} is damaged", where=str(path), hint=f"fetch it again ({problem})") from problem


class Mismatch(NamedTuple):
    """One tensor that does not fit; named as in the checkpoint, or as ours where the converted tensor is at fault."""

    name: str
    problem: Literal["missing", "unexpected", "wrong shape", "wrong type", "NaN or infinity"]
    found: tuple[int, ...] | str | None = None
    """Its shape, or its type where that is wrong."""
    wanted: tuple[int, ...] | str | None = None

    def __str__(self) -> str:
        """As a row of a table."""
        both = [f"has {self.found}"] if self.found is not None else []
        both += [f"needs {self.wanted}"] if self.wanted is not None else []
        return f"{self.problem:15}  {self.name}  {', '.join(both)}".rstrip()

    def sentence(self, prefix: str = "") -> str:
        """As a sentence; `prefix` goes before the name."""
        verdicts = {
            "missing": "is missing",
            "unexpected": "is not part of the model",
            "wrong shape": f"has shape {self.found} instead of {self.wanted}",
            "wrong type": f"holds {self.found} instead of {self.wanted}",
            "NaN or infinity": "holds NaN or infinity",
        }
        return f"{prefix}{self.name} {verdicts[self.problem]}"


def find_mismatches(wanted: Mapping[str, TensorLike], given: Mapping[str, TensorLike]) -> list[Mismatch]:
    """Every tensor that is missing, unexpected, of another shape, or integer instead of floating point; by name.

    Any floating-point type fits any other, and any integer type fits any other.
    """
    rows = [Mismatch(name, "missing", wanted=tuple(wanted[name].shape)) for name in wanted.keys() - given.keys()]
    for name, tensor in given.items():
        shape = tuple(tensor.shape)
        if name not in wanted:
            rows.append(Mismatch(name, "unexpected", shape))
        elif shape != tuple(wanted[name].shape):
            rows.append(Mismatch(name, "wrong shape", shape, tuple(wanted[name].shape)))
        elif tensor.is_floating_point() != wanted[name].is_floating_point():
            right = "floating-point numbers" if wanted[name].is_floating_point() else "integers"
            rows.append(Mismatch(name, "wrong type", str(tensor.dtype).removeprefix("torch."), right))
    return sorted(rows, key=lambda row: row.name)


def summarize(rows: Sequence[Mismatch], *, prefix: str = "") -> str:
    """The number of rows and the first few, in one line; `prefix` goes before every name."""
    more = f"; and {len(rows) - MAX_NAMED} more" if len(rows) > MAX_NAMED else ""
    tensors = "1 tensor" if len(rows) == 1 else f"{len(rows)} tensors"
    return f"({tensors}): " + "; ".join(row.sentence(prefix) for row in rows[:MAX_NAMED]) + more


def assign_state(model: nn.Module, state: Mapping[str, Tensor], *, where: str) -> None:
    """Replace all tensors of a model with those of a complete state dict; a model on `meta` becomes real.

    Raises:
        WeightsError: a tensor is missing, unexpected, of another shape or kind of number, or not finite.
    """
    wanted = model.state_dict()
    rows = find_mismatches(wanted, state)
    rows += [Mismatch(name, "NaN or infinity") for name in wanted if name in state and not is_finite(state[name])]
    if rows:
        raise WeightsError(
            f"the weights do not fit the model {summarize(rows)}",
            where=where,
            hint="do config.yaml and model.safetensors belong together?",
        )
    model.load_state_dict(dict(state), strict=True, assign=True)


class NoInitialisation(TorchFunctionMode):
    """Skips the initialisation of parameters that will be replaced; on `meta` it would take a second."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever `func` returns
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))
