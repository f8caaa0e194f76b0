"""The HTML page about a run: its content, hostile content, and its form."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from refcli.contracts.example import Region
from refcli.contracts.prediction import Target
from refcli.data.store.read import Store
from refcli.evaluation.metrics.conventions import choose_conventions
from refcli.evaluation.predictions import score_file
from refcli.evaluation.report.cases import choose_cases, find_answers, make_cases, quality
from refcli.evaluation.report.document import report_document, report_run
from refcli.evaluation.report.page import render_report
from refcli.evaluation.run import Scoring

SPLIT = "synthetic:test"
EMPTY = frozenset({"meta", "img", "source", "br", "link", "hr"})
HOSTILE = '<script>alert("1")</script> $x^2$ & \ud800 \x00 "><img src=https://evil.example/x.png>'


class Page(HTMLParser):
    """A page in pieces; tags that do not nest are an error."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.resources: list[str] = []
        self.values: dict[str, float] = {}
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(page.decode())
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        about = dict(attrs)
        self.resources += [about[name] for name in ("src", "srcset", "href") if name in about]
        if tag == "data" and "title" in about:
            self.values[about["title"]] = float(about["value"])
        if tag not in EMPTY:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def images(self) -> list[tuple[str, bytes]]:
        parts = [one.removeprefix("data:").split(";base64,") for one in self.resources if one.startswith("data:")]
        return [(kind, base64.b64decode(content, validate=True)) for kind, content in parts]


def scored(store: Path, lines: Path, *, split: str = SPLIT, conventions: tuple[str, ...] = ("original",)):
    """A run over a prediction file and its split."""
    truth = Store(store).split(split)
    return score_file(lines, {split: truth}, scoring=Scoring(conventions, missing="error")), truth


def cases_of(run, truth, lines: Path, count: int):
    (part,) = run.splits
    choice = choose_cases(part, count)
    answers = find_answers(lines, {part.name: truth}, {part.name: choice})
    return {part.name: make_cases(part, truth, choice, answers[part.name])}


def page_of(store: Path, lines: Path, *, count: int = 3, **how) -> bytes:
    run, truth = scored(store, lines, **how)
    return render_report(run, report_run(run), cases_of(run, truth, lines, count))


def test_several_splits_have_an_overview_and_links_that_lead_to_them(store, examples, truth_of, write_lines):
    lines = write_lines(map(truth_of, examples))
    run, _ = scored(store, lines)
    (part,) = run.splits
    two = replace(run, splits=(part, replace(part, name="synthetic:again")))
    content = render_report(two, report_run(two), {})
    page = Page(content)
    targets = [one for one in page.resources if one.startswith("#")]
    assert len(targets) == 2
    assert all(f'id="{target[1:]}"'.encode() in content for target in targets)
    assert page.text.index("synthetic:again") < page.text.index("All metrics")
    assert page.values["synthetic/again/acc50"] == 1


@pytest.fixture
def shifted(examples, truth_of, write_lines) -> Path:
    """Answers whose boxes are off by more from sample to sample."""
    answers = []
    for number, one in enumerate(examples):
        answer = truth_of(one)
        moved = tuple(
            replace(target, box_xyxy=tuple(side + number for side in target.box_xyxy)) for target in answer.targets
        )
        answers.append(replace(answer, targets=moved))
    return write_lines(answers)


def test_every_metric_of_the_summary_is_in_the_page_unrounded(store, shifted):
    run, truth = scored(store, shifted, conventions=choose_conventions(["all"]))
    report = report_run(run)
    page = Page(render_report(run, report, cases_of(run, truth, shifted, 2)))
    document = json.loads(json.dumps(report_document(report)))
    assert page.values == document["metrics"]
    for low, high in document["splits"][SPLIT]["intervals"].values():
        assert f"{100 * low:.1f} – {100 * high:.1f}" in page.text


def test_every_image_decodes_and_nothing_is_fetched(store, shifted):
    content = page_of(store, shifted)
    page = Page(content)
    images = page.images()
    jpegs = [Image.open(io.BytesIO(data)) for kind, data in images if kind == "image/jpeg"]
    for one in jpegs:
        one.load()
    assert len(jpegs) == 6
    drawings = [ElementTree.fromstring(data) for kind, data in images if kind == "image/svg+xml"]
    assert len(drawings) == 2 * page.tags.count("source") >= 2 * 3  # in light and dark ink: histogram, curve, bars
    assert len(images) == len(jpegs) + len(drawings) == len(page.resources)
    assert not re.search(rb"https?://|url\(|@import", content)
    assert {"script", "link", "iframe", "object"}.isdisjoint(page.tags)
    assert len(content) < 5_000_000


def test_equal_input_gives_equal_bytes(store, shifted):
    assert page_of(store, shifted) == page_of(store, shifted)


def test_many_cases_share_the_room(store, shifted, examples):
    count = len(examples)
    run, truth = scored(store, shifted)
    page = render_report(run, report_run(run), cases_of(run, truth, shifted, count), image_bytes=600_000)
    sizes = [len(data) for kind, data in Page(page).images() if kind == "image/jpeg"]
    assert len(sizes) == 2 * count
    assert sum(sizes) <= 600_000


def test_hostile_text_is_text(make_store, examples, truth_of, write_lines):
    one = replace(examples[0], expression=HOSTILE.replace("\ud800", ""), kind='<b>$\\frac{1}$</b>"')
    lines = write_lines([truth_of(one), json.dumps({"schema": HOSTILE})], name="<i>x.jsonl")
    store = make_store([one, replace(examples[1], kind=None)])
    _copy_images(store, one, examples[1])
    run, truth = scored(store, lines)
    page = Page(render_report(run, report_run(run), cases_of(run, truth, lines, 2), other=HOSTILE))
    assert {"script", "b>", "i"}.isdisjoint(page.tags)
    drawn = [kind for kind, _ in page.images() if kind == "image/jpeg"]
    assert len(drawn) == 2 * 1  # the sample without an answer is in no metric, and other images are not in the store
    assert page.tags.count("img") == len(drawn) + page.tags.count("source")
    assert '<script>alert("1")</script> $x^2$' in page.text
    assert "<i>x.jsonl" in page.text


def test_a_system_without_masks_and_a_split_without_kinds(make_store, examples, truth_of, write_lines):
    plain = [replace(one, kind=None, regions=_without_masks(one.regions)) for one in examples if one.regions]
    answers = [replace(truth_of(one), no_target_score=None) for one in plain]
    run, _ = scored(make_store(plain), write_lines(answers), conventions=choose_conventions(["all"]))
    page = Page(render_report(run, report_run(run), {}))
    assert page.values["synthetic/test/acc50"] == 1
    assert not any("mask" in key for key in page.values)
    assert "kind" not in page.text
    assert len(page.images()) == 2 * 3


def test_a_split_without_targets(make_store, examples, truth_of, write_lines):
    empty = [one for one in examples if not one.regions]
    run, _ = scored(make_store(empty), write_lines(map(truth_of, empty)))
    assert Page(render_report(run, report_run(run), {})).values["synthetic/test/n_acc"] == 1


def test_missing_images_leave_cases_out_with_a_note(make_store, examples, truth_of, write_lines):
    lines = write_lines(map(truth_of, examples))
    page = Page(page_of(make_store(examples), lines, count=4))
    assert "4 of 4 are left out: their images cannot be read" in page.text
    assert all(kind == "image/svg+xml" for kind, _ in page.images())


def test_without_answers_the_page_explains_why_there_are_no_cases(store, shifted):
    run, _ = scored(store, shifted)
    assert "per_sample.parquet, which holds no answers" in Page(render_report(run, report_run(run))).text


def test_failures_and_rejected_lines_are_counted(store, examples, truth_of, write_lines):
    lines = write_lines([*map(truth_of, examples[1:]), "no JSON", "nor this"])
    page = Page(page_of(store, lines))
    assert f"1 of {len(examples)} samples have no answer" in page.text
    assert f"{examples[0].id}: no line of the file answers it" in page.text
    assert "2 lines of predictions.jsonl were rejected: not a prediction" in page.text


def test_published_results_are_beside_those_of_the_run(make_store, examples, truth_of, write_lines):
    real = [replace(one, dataset="refcoco_unc", split="val") for one in examples[:3]]
    run, _ = scored(make_store(real), write_lines(map(truth_of, real)), split="refcoco_unc:val")
    text = Page(render_report(run, report_run(run), {})).text
    assert re.search(r"OneRef-B\s+single\s+oneref384\s+88\.75", text)
    assert "acc50, single: OneRef (NeurIPS 2024), Table 1 (OneRef-B" in text
    assert "The published split has 10,834 expressions, this run 3." in text


def test_the_existence_score_is_drawn_where_it_is_known(store, shifted):
    run, _ = scored(store, shifted)
    (part,) = run.splits
    score = np.where(part.table["num_targets"].to_numpy() > 0, 0.2, 0.9)
    at = part.table.column_names.index("no_target_score")
    for column, is_drawn in ((np.full(len(score), np.nan), False), (score, True)):
        table = part.table.set_column(at, "no_target_score", pa.array(column))
        shown = replace(run, splits=(replace(part, table=table),))
        assert ("Existence score" in Page(render_report(shown, report_run(shown), {})).text) is is_drawn


def test_the_worst_are_those_with_the_least_overlap_and_wrong_decisions(store, examples, truth_of, write_lines):
    meant = [number for number, one in enumerate(examples) if len(one.regions) == 1]
    absent = next(number for number, one in enumerate(examples) if not one.regions)
    answers = [truth_of(one) for one in examples]
    far, denied = meant[2], meant[5]
    answers[far] = replace(answers[far], targets=(Target((0.0, 0.0, 1.0, 1.0), 1.0),))
    answers[denied] = replace(answers[denied], no_target=True)
    answers[absent] = replace(answers[absent], no_target=False, targets=(Target((0.0, 0.0, 9.0, 9.0), 1.0),))
    run, _ = scored(store, write_lines(answers))
    (part,) = run.splits
    assert set(choose_cases(part, 3).worst) == {far, denied, absent}
    values = quality(part.scores)
    assert [row for row, value in enumerate(values) if value < 1] == sorted([far, denied, absent])


def test_random_cases_depend_on_the_seed_and_occur_once(store, shifted, examples):
    run, _ = scored(store, shifted)
    (part,) = run.splits
    chosen = choose_cases(part, 10).random
    assert chosen == choose_cases(part, 10).random
    assert chosen != choose_cases(part, 10, seed=1).random
    assert len(set(chosen)) == 10
    assert choose_cases(part, 10_000).random == tuple(range(len(examples)))


def test_the_answers_of_cases_are_the_first_lines_of_their_ids(store, examples, truth_of, write_lines):
    first, second = truth_of(examples[0]), replace(truth_of(examples[0]), weights="another")
    lines = write_lines([first, second, *map(truth_of, examples[1:])])
    run, truth = scored(store, lines)
    cases = cases_of(run, truth, lines, len(examples))[SPLIT]
    assert [case.example.id for case in cases.random] == [one.id for one in examples]
    assert [case.answer for case in cases.random] == [
        replace(truth_of(one), targets=_rounded(truth_of(one).targets)) for one in examples
    ]


def _rounded(targets: tuple[Target, ...]) -> tuple[Target, ...]:
    return tuple(replace(one, box_xyxy=tuple(round(side, 2) for side in one.box_xyxy)) for one in targets)


def _without_masks(regions: tuple[Region, ...]) -> tuple[Region, ...]:
    return tuple(replace(region, mask=None) for region in regions)


def _copy_images(store: Path, *examples) -> None:
    for one in examples:
        path = store / one.dataset / one.image
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (one.width, one.height), (90, 90, 90)).save(path)
