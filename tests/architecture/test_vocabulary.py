"""One word per thing: words that the project has replaced do not come back, and a class name means one thing."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("refcli", "tests", "benchmarks", "tools", "data_specs", "docs", ".github")
SUFFIXES = frozenset({".py", ".md", ".yaml", ".yml", ".toml", ".j2", ".cff"})

REPLACED: dict[str, str] = {
    r"pictur(?:e|es|ed)": "image",
    r"mend(?:s|ed|ing)?": "fix, repair",
    r"told|untold": "reported, detected, known",
    r"tells?|telling": "report, state, show, tell apart -> distinguish",
    r"talk(?:s|ed|ing|ative)?": "message, report, log",
    r"said|unsaid": "stated, given, reported",
    r"nobody|whoever": "unknown, missing, unused; the code that ...",
    r"ungated": "before postprocessing, raw",
    r"(?:put|puts|putting)[ _]back": "restore",
    r"(?:took|taken|taking)[ _]up|take_state": "resume, capture",
    r"one_voice|who_tells": "report_from_one_rank",
    r"(?:go|goes|went|gone|going) on": "continue",
    r"(?:is|are|was|were) meant": "referred to, the referred region",
    r"of no use|lines? of use": "rejected, unusable",
    r"look-alike": "near-duplicate",
}
"""Words (as a regular expression, whole words or parts of a snake_case or CamelCase name) -> what to write instead."""
KEPT = re.compile(
    r"unusable_picture|rotated_picture|unreadable_pictures|mask_in_picture_of_unknown_size|[\"']pictures?[\"']"
    r"|</?picture>|\btell\(|look-alike:"
)
"""Keys, values and folder names of the file formats, HTML elements, printed rows, and a method of Python's streams."""
LEXICA = frozenset({"refcli/text/roles.py", "tests/text/test_roles.py", "tests/data/sources/test_flickr.py"})
"""Files about the words of other people's expressions."""


def texts() -> list[Path]:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    files += [path for path in ROOT.iterdir() if path.suffix in SUFFIXES]
    return sorted(path for path in files if path != Path(__file__).resolve() and place(path) not in LEXICA)


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def as_words(line: str) -> str:
    """The line with names taken apart: `HasTold` and `has_told` read "Has Told" and "has told"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", KEPT.sub("", line))


@pytest.mark.parametrize("pattern", REPLACED, ids=lambda pattern: pattern.split("|")[0])
def test_a_replaced_word_does_not_come_back(pattern):
    word = re.compile(rf"(?<![A-Za-z])(?:{pattern.replace('_', ' ')})(?![A-Za-z])", re.IGNORECASE)
    found = [
        f"{place(path)}:{number}: {line.strip()}"
        for path in texts()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if word.search(as_words(line))
    ]

    assert found == [], f"write instead: {REPLACED[pattern]}"


def test_a_class_name_means_one_thing():
    places = defaultdict(list)
    for path in sorted((ROOT / "refcli").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(place(path))

    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def private_uses(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, name) of every private name that is imported from the package, or read from what is imported from it."""
    imports = [
        node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("refcli")
    ]
    names = {alias.asname or alias.name for node in imports for alias in node.names}
    for node in imports:
        yield from ((node.lineno, alias.name) for alias in node.names if alias.name.startswith("_"))
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name in names:
                if re.match(r"_(?!_|replace$|asdict$|fields$)", attribute):
                    yield node.lineno, f"{name}.{attribute}"
            case ast.Constant(value=str(text)) if re.fullmatch(r"refcli(?:\.\w+)*\._[a-z]\w*", text):
                yield node.lineno, text


def test_a_test_touches_no_private_name_of_the_package():
    found = [
        f"{place(path)}:{line}: {name}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for line, name in private_uses(ast.parse(path.read_text(encoding="utf-8")))
    ]

    assert found == []
