"""Renaming of published tensors, in both directions, by templates of names."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from refcli.config.schema import HeadChoice
from refcli.errors import WeightsError
from refcli.weights.layout import HeadOnlySettings
from refcli.weights.official.conversions.plan import ConversionPlan, check_keys

Names = tuple[tuple[str, str], ...]
"""(official, ours) templates of names; {fields} stand for the parts that both names share."""
FIELDS = {
    "layer": r"\d+",
    "expert": "A|B|vision|language",
    "kind": "weight|bias",
    "token": "cls|mask",
    "linear": "fc1|fc2",
    "part": "[qkv]",
    "statistic": r"\w+",
}
_OTHER_SIDE = {"A": "vision", "B": "language", "vision": "A", "language": "B"}
"""torchscale calls the vision expert A and the language expert B."""


@cache
def _pattern(template: str) -> re.Pattern[str]:
    parsed = string.Formatter().parse(template)
    return re.compile("".join(re.escape(text) + (f"(?P<{f}>{FIELDS[f]})" if f else "") for text, f, _, _ in parsed))


def match_fields(template: str, name: str) -> dict[str, str] | None:
    """The values of the fields in a name that fits a template, as the other side writes them; else None."""
    found = _pattern(template).fullmatch(name)
    return {key: _OTHER_SIDE.get(value, value) for key, value in found.groupdict().items()} if found else None


def rename(name: str, pairs: Iterable[tuple[str, str]]) -> str | None:
    """The name by the second template of the first pair whose first template fits."""
    for template, other in pairs:
        if (fields := match_fields(template, name)) is not None:
            return other.format(**fields)
    return None


def our_names(official: Iterable[str], names: Names) -> dict[str, str]:
    """Official name -> ours, for names that fit a template."""
    return {name: ours for name in official if (ours := rename(name, names))}


ENCODERS_LEFT_OUT = (
    (re.compile(r"backbone\."), "its Swin transformer, which the one tower replaces"),
    (re.compile(r"text_encoder\."), "its BERT, which the one tower replaces"),
)
"""The encoders of published decoders."""


@dataclass(frozen=True)
class Renaming:
    """How the tensors of a published model are renamed one by one, in both directions; each keeps its shape."""

    kind: str
    """The model's name, for errors."""
    names: Names
    left_out: Sequence[tuple[re.Pattern[str], str]]
    """Beginnings of official names for which our model has no tensor, each with the reason."""
    hint_for_unknown: str
    """Hint of the error about a tensor that is not part of the published model."""
    hint_for_ours: str
    """Hint of the error about a tensor of ours that the published model does not have."""

    def why_left_out(self, name: str) -> str | None:
        """Why our model has no tensor for an official one; None if it has one, or if the name is unknown."""
        return next((why for pattern, why in self.left_out if pattern.match(name)), None)

    def dropped(self, official: Iterable[str]) -> dict[str, str]:
        """Official name -> why it is left out."""
        return {name: why for name in official if (why := self.why_left_out(name))}

    def our_names(self, official: Iterable[str]) -> dict[str, str]:
        """Official name -> ours, for names that fit a template."""
        return our_names(official, self.names)

    def check(self, official: Mapping[str, Tensor], *, model: Mapping[str, Tensor]) -> None:
        """Check that a checkpoint has every tensor of our model, and no unknown one.

        Args:
            official: the tensors of the checkpoint.
            model: the state dict of our model; tensors on `meta` are enough.

        Raises:
            KeyTableError: with a row for every tensor that does not fit.
        """
        expected = self.to_official(model)
        check_keys(self.kind, official, expected, also_known=lambda name: self.why_left_out(name) is not None)

    def plan_head(
        self,
        official: Mapping[str, Tensor],
        *,
        model: Mapping[str, Tensor],
        head: HeadChoice,
        tower_dim: int,
        note: str,
    ) -> ConversionPlan:
        """The conversion to (part of) a head without a tower.

        Args:
            official: the tensors of the checkpoint.
            model: the state dict of that part of our head, under the names in a complete model.
            head: name and settings of the head.
            tower_dim: width of a tower that the tensors fit.
            note: for the user.

        Raises:
            KeyTableError: missing, misshapen or unknown tensors.
        """
        self.check(official, model=model)
        return ConversionPlan(
            settings=HeadOnlySettings(tower_dim=tower_dim, head=head),
            state=self.from_official(official),
            names=self.our_names(self.to_official(model)),
            dropped=self.dropped(official),
            notes=(note,),
        )

    def from_official(self, official: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors under our names, not copied, without those that our model does not have.

        Raises:
            WeightsError: a tensor that is not part of the published model.
        """
        kept = [name for name in official if self.why_left_out(name) is None]
        ours = self.our_names(kept)
        unknown = [name for name in kept if name not in ours]
        if unknown:
            raise WeightsError(
                f"{len(unknown)} tensors do not belong to a {self.kind} model: {', '.join(sorted(unknown)[:5])}",
                where="state dict",
                hint=self.hint_for_unknown,
            )
        return {ours[name]: official[name] for name in kept}

    def to_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors under the official names: the inverse of `from_official`, except for the tensors it left out.

        Raises:
            WeightsError: a tensor that the published model does not have.
        """
        back = tuple((ours, theirs) for theirs, ours in self.names)
        theirs = {name: rename(name, back) for name in state}
        unknown = [name for name, official in theirs.items() if official is None]
        if unknown:
            raise WeightsError(
                f"{len(unknown)} tensors have no place in the official model: {', '.join(sorted(unknown)[:5])}",
                where="state dict",
                hint=self.hint_for_ours,
            )
        return {official: state[name] for name, official in theirs.items() if official is not None}
