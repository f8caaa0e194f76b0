"""What one official state dict becomes, and the table of tensors when it cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

from refcli.config.schema import HeadChoice, Settings
from refcli.errors import WeightsError

MAX_ROWS_SHOWN = 25
HEAD_DIM = 64
"""Width of one attention head in every published model."""
PUBLISHED_WIDTHS = (768, 1024)
"""Of base and large; the visual tokenizer is a base."""
NOT_PARAMETERS = ("running_mean", "running_var", "num_batches_tracked")
"""Last words of the names of BatchNorm's buffers."""


class HeadOnlySettings(Settings):
    """The config.yaml of a directory that holds (part of) a head without its tower."""

    tower_dim: int
    """Width of a tower that the tensors fit."""
    head: HeadChoice


@dataclass(frozen=True)
class Plan:
    """The tensors, settings and story of a converted checkpoint; nothing is written yet."""

    settings: Settings
    """For config.yaml: of a whole model, a tower without a head, part of a head, or a visual tokenizer."""
    state: dict[str, Tensor]
    """Our names."""
    names: dict[str, str]
    """Official name -> ours, for every converted tensor."""
    kept_apart: dict[str, Tensor] = field(default_factory=dict)
    """Tensors, under their official names, that our model has no place for but that somebody trained."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Official name -> why nothing needs it."""
    tasks: tuple[str, ...] = ()
    """`box` and `mask`, as far as the checkpoint was trained for them."""
    notes: tuple[str, ...] = ()
    """What the user should know."""


class KeyRow(NamedTuple):
    """One tensor that does not fit: under its official name, or under ours where the converted one is at fault."""

    name: str
    problem: Literal["missing", "unexpected", "wrong shape", "NaN or infinity"]
    found: tuple[int, ...] | None = None
    wanted: tuple[int, ...] | None = None

    def __str__(self) -> str:
        shapes = [f"has {self.found}"] if self.found is not None else []
        shapes += [f"wants {self.wanted}"] if self.wanted is not None else []
        return f"{self.problem:15}  {self.name}  {', '.join(shapes)}".rstrip()


class KeyTableError(WeightsError):
    """A checkpoint whose tensors do not make the model; `rows` names every one of them."""

    def __init__(self, kind: str, rows: Sequence[KeyRow]) -> None:
        self.rows = tuple(sorted(rows, key=lambda row: (row.problem, row.name)))
        shown = "".join(f"\n  {row}" for row in self.rows[:MAX_ROWS_SHOWN])
        more = f"\n  and {len(rows) - MAX_ROWS_SHOWN} more" if len(rows) > MAX_ROWS_SHOWN else ""
        super().__init__(
            f"{len(rows)} tensors do not make a {kind} model:{shown}{more}",
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
    """Every expected tensor is there in its shape, and every other one is known by name.

    Args:
        kind: named in the error.
        official: what the checkpoint has.
        expected: what the model needs, under the official names; tensors on `meta` will do.
        also_known: whether a name that the model does not need is on the kind's documented lists.

    Raises:
        KeyTableError: with a row for every tensor that does not fit.
    """
    rows = [KeyRow(name, "missing", wanted=tuple(expected[name].shape)) for name in expected.keys() - official.keys()]
    for name, tensor in official.items():
        found = tuple(tensor.shape)
        if name in expected and found != tuple(expected[name].shape):
            rows.append(KeyRow(name, "wrong shape", found, tuple(expected[name].shape)))
        elif name not in expected and not also_known(name):
            rows.append(KeyRow(name, "unexpected", found))
    if rows:
        raise KeyTableError(kind, rows)


def size_of(official: Mapping[str, Tensor], name: str, *, rank: int, kind: str) -> tuple[int, ...]:
    """The sides of a tensor that tells the model's sizes.

    Raises:
        KeyTableError: missing, of another rank, or empty.
    """
    if name not in official:
        raise KeyTableError(kind, [KeyRow(name, "missing")])
    shape = tuple(official[name].shape)
    if len(shape) != rank or 0 in shape:
        raise KeyTableError(kind, [KeyRow(name, "wrong shape", shape)])
    return shape


def count_heads(dim: int, heads: int | None) -> int | None:
    """The number of attention heads, which no tensor's shape shows: as given, or of 64 channels as published.

    None if the width does not divide into such heads.
    """
    if heads is None:
        heads = dim // HEAD_DIM if dim % HEAD_DIM == 0 else 0
    return heads if heads >= 1 and dim % heads == 0 else None


def heads_note(dim: int, heads: int | None) -> tuple[str, ...]:
    """What the user should know if the heads were not given and the width is none of the published ones."""
    if heads is not None or dim in PUBLISHED_WIDTHS:
        return ()
    return (f"taken for granted: attention heads of {HEAD_DIM} channels, {dim // HEAD_DIM} in all; else give --heads",)


def is_parameter(name: str) -> bool:
    """Whether a tensor of a state dict counts as a parameter."""
    return name.rsplit(".", 1)[-1] not in NOT_PARAMETERS
