"""The result of converting an official state dict, and the checks and errors that all conversions share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from refcli.config.schema import Settings
from refcli.errors import UsageError, WeightsError
from refcli.weights.tensors import Mismatch, find_mismatches

MAX_ROWS_SHOWN = 25
HEAD_DIM = 64
"""Width of one attention head in every published model."""
PUBLISHED_WIDTHS = (768, 1024)
"""Widths of base and large models; the visual tokenizer is a base."""
NOT_PARAMETERS = ("running_mean", "running_var", "num_batches_tracked")
"""How the names of BatchNorm's buffers end."""


@dataclass(frozen=True)
class ConversionPlan:
    """A converted checkpoint, not yet written: its settings and tensors, and what became of each official tensor."""

    settings: Settings
    """For config.yaml; one of `AnyWeightsSettings`."""
    state: dict[str, Tensor]
    """By our names."""
    names: dict[str, str]
    """Official name -> ours, for every converted tensor."""
    kept_apart: dict[str, Tensor] = field(default_factory=dict)
    """Trained tensors that our model does not have, under their official names."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Official name -> why the tensor is not needed."""
    tasks: tuple[str, ...] = ()
    """Those of `box` and `mask` that the checkpoint was trained for."""
    notes: tuple[str, ...] = ()
    """For the user."""


class KeyTableError(WeightsError):
    """A checkpoint whose tensors do not fit the model; `rows` lists every one of them."""

    def __init__(self, kind: str, rows: Sequence[Mismatch]) -> None:
        self.rows = tuple(sorted(rows, key=lambda row: (row.problem, row.name)))
        shown = "".join(f"\n  {row}" for row in self.rows[:MAX_ROWS_SHOWN])
        more = f"\n  and {len(rows) - MAX_ROWS_SHOWN} more" if len(rows) > MAX_ROWS_SHOWN else ""
        tensors = "1 tensor does" if len(rows) == 1 else f"{len(rows)} tensors do"
        super().__init__(
            f"{tensors} not fit a {kind} model:{shown}{more}",
            where="state dict",
            hint="is the file complete, and of this kind? nothing was written",
        )


def check_keys(
    kind: str,
    official: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    *,
    also_known: Callable[[str], bool],
) -> None:
    """Check that every expected tensor exists with its shape and kind of number, and that the others are known by name.

    Args:
        kind: named in the error.
        official: the tensors of the checkpoint.
        expected: those that the model needs, under the official names; tensors on `meta` are enough.
        also_known: whether the name of another tensor is known for this kind.

    Raises:
        KeyTableError: with a row for every tensor that does not fit.
    """
    rows = [
        row for row in find_mismatches(expected, official) if row.problem != "unexpected" or not also_known(row.name)
    ]
    if rows:
        raise KeyTableError(kind, rows)


def size_of(official: Mapping[str, Tensor], name: str, *, rank: int, kind: str) -> tuple[int, ...]:
    """The shape of a tensor from which the model's sizes are read.

    Raises:
        KeyTableError: missing, of another rank, or empty.
    """
    if name not in official:
        raise KeyTableError(kind, [Mismatch(name, "missing")])
    shape = tuple(official[name].shape)
    if len(shape) != rank or 0 in shape:
        raise KeyTableError(kind, [Mismatch(name, "wrong shape", shape)])
    return shape


def count_heads(dim: int, heads: int | None) -> int:
    """The number of attention heads: as given, or of 64 channels each as published; no tensor's shape shows it.

    Raises:
        UsageError: the width does not divide into such heads.
    """
    num_heads = dim // HEAD_DIM if heads is None else heads
    if num_heads < 1 or dim % num_heads or (heads is None and dim % HEAD_DIM):
        wanted = f"heads of {HEAD_DIM} channels" if heads is None else f"{heads} heads"
        raise UsageError(
            f"a width of {dim} channels does not divide into {wanted}",
            where="--heads",
            hint="no tensor shows the number of attention heads: give it to `refcli weights convert`",
        )
    return num_heads


def heads_note(dim: int, heads: int | None) -> tuple[str, ...]:
    """A note about the assumed heads, if they were not given and the width is not a published one."""
    if heads is not None or dim in PUBLISHED_WIDTHS:
        return ()
    return (f"assumed: attention heads of {HEAD_DIM} channels, {dim // HEAD_DIM} in all; else give --heads",)


def is_parameter(name: str) -> bool:
    """Whether a tensor of a state dict counts as a parameter."""
    return name.rsplit(".", 1)[-1] not in NOT_PARAMETERS
