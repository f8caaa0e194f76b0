"""Renaming of published tensors one by one, in both directions; what our model has no place for is left out."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from torch import Tensor

from refcli.errors import WeightsError

Names = tuple[tuple[str, str], ...]
"""(official, ours) templates; {fields} stand for what both names share."""
FIELDS = {
    "layer": r"\d+",
    "expert": "A|B|vision|language",
    "kind": "weight|bias",
    "token": "cls|mask",
    "linear": "fc1|fc2",
    "part": "[qkv]",
    "statistic": r"\w+",
}
OTHER_SIDE = {"A": "vision", "B": "language", "vision": "A", "language": "B"}
"""torchscale calls the vision expert A and the language expert B."""


@cache
def _pattern(template: str) -> re.Pattern[str]:
    parsed = string.Formatter().parse(template)
    return re.compile("".join(re.escape(text) + (f"(?P<{f}>{FIELDS[f]})" if f else "") for text, f, _, _ in parsed))


def match_fields(template: str, name: str) -> dict[str, str] | None:
    """What the fields of a template stand for in a name that fits it, as the other side calls it."""
    found = _pattern(template).fullmatch(name)
    return {key: OTHER_SIDE.get(value, value) for key, value in found.groupdict().items()} if found else None


def rename(name: str, pairs: Iterable[tuple[str, str]]) -> str | None:
    """The second name of the first pair whose first template fits; the experts change sides."""
    for template, other in pairs:
        if (fields := match_fields(template, name)) is not None:
            return other.format(**fields)
    return None


def our_names(official: Iterable[str], names: Names) -> dict[str, str]:
    """Official name -> ours, for names that fit a template."""
    return {name: ours for name in official if (ours := rename(name, names))}


LeftOut = Sequence[tuple[re.Pattern[str], str]]
"""How names begin that our model has no place for, and why."""


def why_left_out(name: str, left_out: LeftOut) -> str | None:
    """Why our model has no place for an official tensor; None for one that it has a place for, or an unknown one."""
    return next((why for pattern, why in left_out if pattern.match(name)), None)


def from_official(
    official: Mapping[str, Tensor], names: Names, left_out: LeftOut, *, kind: str, hint: str
) -> dict[str, Tensor]:
    """The tensors under our names; every one keeps its shape, and none is copied.

    Raises:
        WeightsError: a tensor that is neither among the names nor left out; it tells `kind` and `hint`.
    """
    kept = [name for name in official if why_left_out(name, left_out) is None]
    ours = our_names(kept, names)
    unknown = [name for name in kept if name not in ours]
    if unknown:
        raise WeightsError(
            f"{len(unknown)} tensors do not belong to a {kind} model: {', '.join(sorted(unknown)[:5])}",
            where="state dict",
            hint=hint,
        )
    return {ours[name]: official[name] for name in kept}


def to_official(state: Mapping[str, Tensor], names: Names, *, hint: str) -> dict[str, Tensor]:
    """Our tensors under the official names: the inverse of `from_official`, without what that left out.

    Raises:
        WeightsError: a tensor that the official model does not have; it tells `hint`.
    """
    back = tuple((ours, theirs) for theirs, ours in names)
    theirs = {name: rename(name, back) for name in state}
    unknown = [name for name, official in theirs.items() if official is None]
    if unknown:
        raise WeightsError(
            f"{len(unknown)} tensors have no place in the official model: {', '.join(sorted(unknown)[:5])}",
            where="state dict",
            hint=hint,
        )
    return {official: state[name] for name, official in theirs.items() if official is not None}
