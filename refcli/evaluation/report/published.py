"""Published results on the splits of real data sets, from `data_specs/published_results.yaml`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from pydantic import Field, model_validator

from refcli.config.load import read_yaml, validate
from refcli.config.presets import data_specs_root
from refcli.config.schema import Settings
from refcli.data.spec import load_spec
from refcli.evaluation.metrics.conventions import CONVENTIONS
from refcli.evaluation.metrics.measure import METRICS

FILE = "published_results.yaml"


class ResultTable(Settings):
    """Systems with the same metric, protocol and source."""

    metric: str
    """The metric of refcli that means the same."""
    convention: str
    """The convention that it was counted by, if known."""
    training: Literal["single", "mixed", "unsupervised", "other"]
    """On the training split of the data set, on several data sets together, or without annotations."""
    source: str
    second_hand: bool = False
    """The results come from a table of another paper or a web page, not from their authors."""
    splits: tuple[str, ...]
    """`dataset:split` of each column."""
    systems: dict[str, tuple[float | None, ...]]
    """Percent in each column; None if nothing was published."""

    @model_validator(mode="after")
    def _fits(self) -> ResultTable:
        if self.metric not in METRICS or self.convention not in CONVENTIONS:
            raise ValueError(f"there is no metric {self.metric!r} or no convention {self.convention!r}")
        for name, percentages in self.systems.items():
            if len(percentages) != len(self.splits) or any(
                not 0 <= one <= 100 for one in percentages if one is not None
            ):
                raise ValueError(f"{name} does not have {len(self.splits)} percentages")
        return self


class PublishedResults(Settings):
    """The content of the file."""

    tables: tuple[ResultTable, ...] = Field(min_length=1)


@dataclass(frozen=True)
class PublishedResult:
    """One result of one published system on one split."""

    system: str
    metric: str
    value: float
    """A fraction in 0..1."""
    convention: str
    training: str
    source: str
    second_hand: bool


@cache
def load_published() -> PublishedResults:
    """All published results that refcli knows.

    Raises:
        ConfigError: the file is invalid.
    """
    path = data_specs_root() / FILE
    return validate(PublishedResults, read_yaml(path), where=str(path))


def published_on(split: str) -> list[PublishedResult]:
    """The published results on a split ("dataset:split"), in the order of the file; none for other data sets."""
    return [
        PublishedResult(
            system, table.metric, percentage / 100, table.convention, table.training, table.source, table.second_hand
        )
        for table in load_published().tables
        if split in table.splits
        for system, percentages in table.systems.items()
        if (percentage := percentages[table.splits.index(split)]) is not None
    ]


def published_size(split: str) -> int | None:
    """Number of expressions of a published split by its specification; None if unknown."""
    dataset, _, part = split.rpartition(":")
    counts = load_spec(dataset).splits.get(part)
    return None if counts is None else counts.expressions
