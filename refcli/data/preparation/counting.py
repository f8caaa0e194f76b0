"""Counts against those that a data set is known to have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from refcli.data.preparation.run import Intake
from refcli.data.spec import DatasetSpec

REMEMBERED = "remembered"
"""Basis of counts that nobody has checked against the files: a difference is worth a hint, not a failure."""


@dataclass(frozen=True)
class CountCheck:
    """One count of one split, as found in the files before anything was left out."""

    split: str
    what: str
    """images, refs or expressions."""
    expected: int
    found: int
    is_certain: bool

    @property
    def agrees(self) -> bool:
        """Whether the two are the same."""
        return self.expected == self.found


def check_counts(spec: DatasetSpec, intake: Mapping[str, Intake]) -> list[CountCheck]:
    """Every count that the specification knows of a split that was read."""
    checks = []
    for split in intake.keys() & spec.splits.keys():
        expected = spec.splits[split]
        found = intake[split].counts()
        for what in found:
            count = getattr(expected, what)
            if count is not None:
                checks.append(CountCheck(split, what, count, found[what], expected.basis != REMEMBERED))
    return sorted(checks, key=lambda check: (check.split, check.what))
