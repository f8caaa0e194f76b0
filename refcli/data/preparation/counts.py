"""Compare the counts of a data set with the published ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from refcli.config.load import validate
from refcli.data.preparation.run import Intake
from refcli.data.sources.record import Source
from refcli.data.sources.table import SOURCES
from refcli.data.spec import DatasetSpec, SplitCounts
from refcli.errors import DataError
from refcli.tables import lookup

REMEMBERED = "remembered"
"""Basis of counts that were not checked against the files: a difference is a warning, not a failure."""


@dataclass(frozen=True)
class CountCheck:
    """One count of one split, as found in the files before any record is left out."""

    split: str
    what: str
    """images, refs or expressions."""
    expected: int
    found: int
    is_certain: bool

    @property
    def agrees(self) -> bool:
        """Whether the count is as expected."""
        return self.expected == self.found


def check_counts(
    spec: DatasetSpec,
    intake: Mapping[str, Intake],
    *,
    settings: Mapping[str, Any],
    splits: Collection[str] | None = None,
) -> list[CountCheck]:
    """Check all counts of a specification; a split without records counts 0 of everything.

    Args:
        spec: specification of the data set.
        intake: split -> contents of its files.
        settings: all settings of the source, as plain values.
        splits: only these; None for all splits of the specification.

    Returns:
        The checks by split; none if the counts for these settings are unknown.
    """
    expected = _known_counts(spec, settings)
    found = {split: intake.get(split, Intake()).counts() for split in expected if splits is None or split in splits}
    return compare_counts(expected, found)


def compare_counts(expected: Mapping[str, SplitCounts], found: Mapping[str, Mapping[str, int]]) -> list[CountCheck]:
    """Compare the counts, by split and name, that are both expected and found."""
    return [
        CountCheck(split, what, count, found[split][what], expected[split].basis != REMEMBERED)
        for split in sorted(expected.keys() & found.keys())
        for what in sorted(found[split])
        if (count := getattr(expected[split], what)) is not None
    ]


def count_error(dataset: str, counts: Sequence[CountCheck], *, where: str, hint: str) -> DataError | None:
    """The error for the first difference from a certain count; None if there is none."""
    wrong = next((check for check in counts if check.is_certain and not check.agrees), None)
    if wrong is None:
        return None
    return DataError(
        f"{dataset}:{wrong.split} has {wrong.found:,} {wrong.what}, but {wrong.expected:,} are expected",
        where=where,
        hint=hint,
    )


def _known_counts(spec: DatasetSpec, settings: Mapping[str, Any]) -> Mapping[str, SplitCounts]:
    if spec.source is None or not spec.counts_if:
        return spec.splits
    source: Source = lookup(SOURCES, spec.source, what="source")
    usual = validate(source.settings, spec.settings, where="settings").model_dump(mode="json")
    keys = {key for entry in spec.counts_if for key in entry.settings}
    changed = {key: settings[key] for key in keys if settings[key] != usual[key]}
    if not changed:
        return spec.splits
    return next((entry.splits for entry in spec.counts_if if entry.settings == changed), {})
