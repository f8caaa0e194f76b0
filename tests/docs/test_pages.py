"""Links resolve, the README stays short, and the site builds."""

from __future__ import annotations

import ast
import pydoc
import re
from itertools import pairwise
from pathlib import Path

import pytest
from documentation import DOCS, NAMES, ROOT, blocks_of, code_spans, prose_of, site_hooks

from refcli.answers import answer_to_json
from refcli.contracts.example import RLE
from refcli.contracts.prediction import Answer, FramedTarget, Target
from refcli.data.sources.jsonl import KEYS
from refcli.errors import ExitCode
from refcli.evaluation.report.document import MORE_FIGURES

MAX_README_LINES = 150
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
with_current_pages = pytest.mark.parametrize("name", [name for name in NAMES if name != "CHANGELOG.md"])
HEADING = re.compile(r"^#{1,6} (.+)$", re.M)


@pytest.fixture(scope="module")
def generated():
    """Addresses of the pages that the site generates, with their contents."""
    return {(DOCS / address).resolve(): write() for address, write in site_hooks().PAGES.items()}


def test_the_readme_fits_on_one_screen_and_a_half():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("name", NAMES)
def test_every_relative_link_of_a_page_resolves(name, generated):
    page = ROOT / name
    for target in LINK.findall(prose_of(page)):
        if re.match(r"https?://|mailto:", target):
            continue
        address, _, anchor = target.partition("#")
        linked = (page.parent / address).resolve() if address else page.resolve()
        assert linked.exists() or linked in generated, f"{target} in {name}"
        if anchor:
            assert anchor in anchors_of(linked, generated), f"{target} in {name}"


def anchors_of(page: Path, generated: dict[Path, str]) -> set[str]:
    text = generated[page] if page in generated else prose_of(page)
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in HEADING.findall(text)]
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}


@pytest.mark.parametrize(
    "table", ["commands", "settings", "presets", "data-sets", "formats"], ids=lambda name: f"reference of {name}"
)
def test_the_generated_tables_are_whole(table, generated):
    """Every line of a table has as many cells as its head."""
    lines = generated[(DOCS / "reference" / f"{table}.md").resolve()].splitlines()
    widths = [len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else None for line in lines]
    assert any(widths)
    for above, below in pairwise(widths):
        assert None in (above, below) or above == below


def test_the_reference_has_every_command_and_setting(generated):
    commands = generated[(DOCS / "reference" / "commands.md").resolve()]
    settings = generated[(DOCS / "reference" / "settings.md").resolve()]
    for command in ("prepare-data", "pretrain", "finetune", "evaluate", "predict", "weights pull", "presets check"):
        assert f"## refcli {command}\n" in commands
    assert "| `--fail-under METRIC=X` |" in commands
    assert "| `optim.lr` | number >= 0 | `0.0001` |" in settings
    assert "`model.head.settings.mask_upsamples`" in settings


@with_current_pages
def test_every_path_of_the_repository_in_the_text_exists(name):
    for span in code_spans(ROOT / name):
        if re.fullmatch(r"(?:refcli|tests|docs|data_specs|benchmarks|tools|\.ci|\.github)/[\w./-]+", span):
            is_named = "NAME" not in span
            assert (ROOT / span).exists() or not is_named, f"`{span}` in {name}"


@with_current_pages
def test_every_python_name_of_refcli_in_the_text_exists(name):
    for span in code_spans(ROOT / name):
        if re.fullmatch(r"refcli(\.[A-Za-z_]\w*)+", span):
            assert pydoc.locate(span) is not None, f"`{span}` in {name}"


def test_the_architecture_page_shows_the_layers_that_are_enforced():
    source = (ROOT / "tests" / "architecture" / "test_layers.py").read_text(encoding="utf-8")
    assignments = [node for node in ast.parse(source).body if isinstance(node, ast.AnnAssign)]
    (layers,) = [ast.literal_eval(node.value) for node in assignments if node.target.id == "LAYERS"]
    enforced = " -> ".join(" | ".join(row) for row in layers)
    shown = [" ".join(block.text.split()) for block in blocks_of(DOCS / "architecture.md") if block.language == "text"]
    assert enforced in shown


def test_the_architecture_page_names_every_room():
    spans = set(code_spans(DOCS / "architecture.md"))
    rooms = {path.parent.name for path in (ROOT / "refcli").glob("*/__init__.py")}
    assert {f"refcli/{room}" for room in rooms} <= spans


def test_the_page_of_exit_codes_lists_every_code():
    text = (DOCS / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.M)} == {int(code) for code in ExitCode}


def test_the_page_of_the_prediction_format_explains_every_field():
    mask = RLE((4, 4), b"08")
    target = Target((0, 0, 1, 1), 0.9, mask, frame=FramedTarget((4, 4), None, mask))
    answer = Answer(
        *("1", "a.jpg", "the cup", 4, 4, (target,), False, 0.1, "demo"),
        candidates=(target,),
        no_target_source="existence",
        unknown_words=("cup",),
        unread_text="cup",
    )
    record = answer_to_json(answer)
    spans = " ".join(code_spans(DOCS / "reference" / "predictions.md"))
    assert {*record, *record["targets"][0]} <= set(re.findall(r"\w+", spans))


def test_the_guide_to_own_data_explains_every_key():
    assert set(KEYS) <= set(code_spans(DOCS / "guides" / "own-data.md"))


def test_the_guide_to_evaluation_explains_every_figure_below_the_short_table():
    names = {name for names in MORE_FIGURES.values() for name in names}
    assert names <= set(code_spans(DOCS / "guides" / "evaluate.md"))


def test_the_site_builds_without_a_warning(tmp_path, monkeypatch, caplog):
    pytest.importorskip("mkdocs", reason='mkdocs is in the extra "docs"')
    pytest.importorskip("material", reason='mkdocs-material is in the extra "docs"')
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    assert (tmp_path / "site" / "reference" / "commands" / "index.html").exists()
    assert 'class="mermaid"' in (tmp_path / "site" / "architecture" / "index.html").read_text(encoding="utf-8")
