"""report: an evaluation in, one HTML page out."""

from __future__ import annotations

from pathlib import Path

from refcli.evaluation.output_folder import page_place
from refcli.evaluation.report.page import render_report
from refcli.files import write_atomically
from refcli.recipes.evaluate import Evaluation


def write_report(evaluation: Evaluation, out: Path) -> Path:
    """Write OUT/report.html, whole or not at all; returns where it is.

    The page needs no other file and no network: figures with intervals, slices, plots, published rows, a comparison,
    failures, and the evaluation's cases drawn on their images. It has no times in it: the same samples and answers
    give the same bytes. With the default number of cases it stays below 5 MB.

    Raises:
        UsageError: a page is there that no evaluation of refcli wrote.
    """
    page = render_report(evaluation.run, evaluation.report, evaluation.cases, other=evaluation.other)
    out.mkdir(parents=True, exist_ok=True)
    path = page_place(out)
    write_atomically(path, page)
    return path
