"""The names that packages export: lazy, complete, importable and typed."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import refcli

HEAVY = ("torch", "numpy", "pydantic", "yaml", "PIL", "pyarrow")
PACKAGES = (
    "refcli",
    *(
        package.name
        for package in pkgutil.walk_packages(refcli.__path__, "refcli.")
        if package.ispkg and hasattr(importlib.import_module(package.name), "__all__")
    ),
)


def test_importing_the_package_loads_nothing_heavy():
    code = f"import sys, refcli; print([name for name in {HEAVY!r} if name in sys.modules])"

    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert printed.strip() == "[]"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_exported_name_resolves(package):
    module = importlib.import_module(package)

    assert [name for name in module.__all__ if getattr(module, name, None) is None] == []
    assert set(module.__all__) <= set(dir(module))


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_see_the_names_that_are_exported(package):
    file = importlib.import_module(package).__file__
    tree = ast.parse(Path(str(file)).read_text(encoding="utf-8"))
    typed = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and str(node.module).startswith(f"{package}.")
        and node.module != "refcli.exports"
        for alias in node.names
    }

    assert typed == set(importlib.import_module(package).__all__) - {"__version__"}


def test_an_unknown_name_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match="module 'refcli' has no attribute 'Predicter'"):
        refcli.Predicter  # noqa: B018


def test_every_exported_function_and_class_has_a_docstring():
    exported = {name: getattr(refcli, name) for name in refcli.__all__ if name != "__version__"}

    assert [name for name, value in exported.items() if not value.__doc__] == []
