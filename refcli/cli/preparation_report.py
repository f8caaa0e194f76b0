"""Show what `refcli prepare-data` has done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from refcli.cli.output import log, log_table

if TYPE_CHECKING:
    from refcli.data.preparation.counts import CountCheck
    from refcli.data.store.write import SplitSummary
    from refcli.data.training.mixtures import MixtureReport
    from refcli.recipes.prepare_data import DatasetReport, Report

SHOWN_PLACES = 3
"""Places to show for each kind of problem; the report file has more."""


def show_report(report: Report) -> None:
    """Show the splits of a data set, and its problems with the first places of each."""
    from refcli.data.training.mixtures import MixtureReport
    from refcli.recipes.prepare_data import DatasetReport

    if not isinstance(report, MixtureReport | DatasetReport):
        _show_splits(report.splits)
    elif report.status == "unchanged":
        log(f"{report.dataset}: unchanged, nothing to do (--force repeats it)")
    elif isinstance(report, DatasetReport):
        _show_dataset_report(report)
    else:
        _show_mixture_report(report)


def _show_dataset_report(report: DatasetReport) -> None:
    name = report.dataset
    _show_splits(report.splits)
    if report.labelled_images is not None:
        images = sum(split.images for split in report.splits)
        log(f"{name}: expressions about {images:,} of {report.labelled_images:,} labelled images")
        log("  " + ", ".join(f"{kind} {count:,}" for kind, count in report.kinds.items()))
    _show_counts(name, report.counts)
    for split, lost in report.lost.items():
        log(f"{name}:{split}: left out {lost:,} of the expressions that were read")
    for split, lost_masks in report.lost_masks.items():
        log(f"warning: {name}:{split}: {lost_masks:,} masks cannot be read and are not in the store")
    for kind, count in report.problems.counts.most_common():
        log(f"  {kind.replace('_', ' ')}: {count:,}")
        for place in report.problems.places[kind][:SHOWN_PLACES]:
            log(f"    {place}")
    log(f"{name}: {report.seconds:.1f} s")


def _show_mixture_report(report: MixtureReport) -> None:
    name = report.dataset
    _show_splits(report.summaries)
    _show_counts(name, report.counts)
    verb = "kept" if report.keep_leaks else "left out"
    for member in report.members:
        log(
            f"{name}:{member.split} from {member.member}: {member.rows:,} expressions; {member.leaking_rows:,} on "
            f"{member.leaking_images:,} images of evaluation splits {verb}"
        )
    for missing in report.missing_evaluation:
        log(f"warning: {missing} is not in the store: its images may be in {name}'s training splits")


def _show_counts(dataset: str, counts: Sequence[CountCheck]) -> None:
    for split in dict.fromkeys(check.split for check in counts if not check.agrees):
        wrong = [check for check in counts if check.split == split and not check.agrees]
        found = ", ".join(f"{check.found:,} {check.what}" for check in wrong)
        known = ", ".join(f"{check.expected:,}" for check in wrong)
        certainty = "are expected" if wrong[0].is_certain else "are expected, but not verified"
        log(f"warning: {dataset}:{split} has {found}; {known} {certainty}")
    if counts:
        log(f"{dataset}: {sum(check.agrees for check in counts)} of {len(counts)} known counts agree")


def _show_splits(splits: Sequence[SplitSummary]) -> None:
    headings = ("split", "images", "examples", "regions", "masks", "no target", "MB")
    rows = [
        (
            f"{split.dataset}:{split.split}",
            *(split.images, split.examples, split.regions, split.masks, split.no_target),
            f"{split.bytes / 1e6:.1f}",
        )
        for split in splits
    ]
    log_table(headings, rows)
