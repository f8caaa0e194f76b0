"""Names that are imported on first use."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def imported(address: str) -> Any:  # noqa: ANN401 - any object
    """The object at an address "package.module:name"."""
    module, name = address.split(":")
    return getattr(import_module(module), name)


def lazy_exports(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package that imports its public names on first use (PEP 562).

    Args:
        package: the package's `__name__`.
        homes: module -> the public names that it defines, separated by blanks.
    """
    home = {name: module for module, names in homes.items() for name in names.split()}

    def __getattr__(name: str) -> Any:  # noqa: ANN401, N807 - Python's own name, and any object
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(home[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:  # noqa: N807 - Python's own name
        return sorted({*vars(sys.modules[package]), *home})

    return __getattr__, __dir__
