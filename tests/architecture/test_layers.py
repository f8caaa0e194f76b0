"""Imports point down only, and no layer knows what it must not."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "refcli"

LAYERS: tuple[tuple[str, ...], ...] = (
    ("cli",),
    ("recipes",),
    ("evaluation",),
    ("pretraining", "inference"),
    ("answers", "drawing"),
    ("weights",),
    ("grounder", "engine"),
    ("data", "heads"),
    ("text", "model", "losses"),
    ("config",),
    ("tables", "geometry"),
    ("contracts",),
    ("files",),
    ("errors", "exports"),
)
"""From the top down; members of one row do not know each other."""
LEVEL = {name: level for level, row in enumerate(LAYERS) for name in row}

NO_FILES = frozenset({"os", "pathlib", "json", "yaml", "cv2", "PIL", "io", "tempfile", "shutil"})
FORBIDDEN: dict[str, frozenset[str]] = {
    "model": NO_FILES,
    "heads": NO_FILES,
    "losses": NO_FILES,
    "data": frozenset({"torch.nn"}),
    "config": frozenset({"torch", "timm", "numpy"}),
    "errors": frozenset({"torch", "numpy", "pydantic"}),
}
UPWARD_VIEWS = frozenset({"refcli.inference.notebook"})
"""Modules that a lower layer names as an address "package.module:name": the methods of `Answer` import them on use."""
TERMINAL = frozenset({"typer", "rich", "click"})
"""Only `cli` imports them."""
EMPTY_WORDS = frozenset({"utils", "util", "helpers", "helper", "common", "misc"})
MAX_LINES = 500


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything a file imports, wherever it does so; `from a import b` gives "a.b"."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def layer_of(path: Path) -> str:
    """The package or module right below `refcli` that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def matches(name: str, forbidden: frozenset[str]) -> bool:
    return any(name == word or name.startswith(word + ".") for word in forbidden)


def test_every_part_of_the_package_has_a_layer():
    parts = {layer_of(path) for path in modules()} - {"__init__", "__main__"}

    assert parts <= LEVEL.keys()


def test_imports_point_down_only():
    wrong = []
    for path in modules():
        here = layer_of(path)
        if here in ("__init__", "__main__"):
            continue  # the two doors: they open the layer they lead to
        for line, name in imports(path):
            there = name.split(".")[1] if name.startswith("refcli.") else None
            if there in LEVEL and there != here and LEVEL[there] <= LEVEL[here]:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {here} imports {there}")

    assert wrong == []


def test_an_address_in_a_table_of_names_does_not_point_up_either():
    upward = {
        module
        for path in modules()
        for module in re.findall(r"\"(refcli(?:\.\w+)+):\w+\"", path.read_text(encoding="utf-8"))
        if (here := layer_of(path)) in LEVEL and LEVEL[module.split(".")[1]] < LEVEL[here]
    }

    assert upward == UPWARD_VIEWS


@pytest.mark.parametrize("layer", sorted(FORBIDDEN))
def test_a_layer_does_not_import_what_is_not_its_business(layer):
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in modules()
        if layer_of(path) == layer
        for line, name in imports(path)
        if matches(name, FORBIDDEN[layer])
    ]

    assert wrong == []


def test_only_the_command_line_imports_terminal_libraries():
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in modules()
        if layer_of(path) != "cli"
        for line, name in imports(path)
        if matches(name, TERMINAL)
    ]

    assert wrong == []


def test_only_the_command_line_prints():
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in modules()
        if layer_of(path) != "cli"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]

    assert wrong == []


def test_a_file_can_be_read_in_one_sitting():
    files = [
        *modules(),
        *(ROOT / "tests").rglob("*.py"),
        *(ROOT / "benchmarks").rglob("*.py"),
        *(ROOT / "tools").rglob("*.py"),
    ]
    long = {
        str(path.relative_to(ROOT)): count
        for path in files
        if (count := len(path.read_text().splitlines())) > MAX_LINES
    }

    assert long == {}


def test_a_module_is_named_after_its_contents():
    assert [path for path in modules() if EMPTY_WORDS & {part.removesuffix(".py") for part in path.parts}] == []


def test_every_module_says_in_one_sentence_what_it_is():
    written = [path for path in modules() if path.read_text().strip()]
    silent = [str(path.relative_to(ROOT)) for path in written if not ast.get_docstring(ast.parse(path.read_text()))]

    assert silent == []
