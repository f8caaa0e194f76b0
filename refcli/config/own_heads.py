"""Heads of other packages: their names ("package.module:ClassName") and the rules for importing their modules."""

from __future__ import annotations

import os
import re
import sys
from importlib import import_module

from refcli.errors import ConfigError

TRUSTED_VARIABLE = "REFCLI_HEADS"
"""Environment variable: the modules of own heads that any settings may name, separated by commas."""
_NAME = re.compile(r"(?P<module>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<attribute>[A-Za-z_]\w*)", re.ASCII)
_WHERE = "model.head.name"


def is_own_head(name: str) -> bool:
    """Whether a head's name is "package.module:ClassName" instead of a name that refcli knows."""
    return ":" in name


def import_own_head(name: str) -> None:
    """Import the module of an own head that the user named; other names are ignored.

    Raises:
        ConfigError: the name is malformed, or the module cannot be imported.
    """
    if is_own_head(name):
        _import(_split(name)[0])


def find_own_head(name: str) -> object:
    """The object that an own head's name refers to, in a module that is imported already or that the user trusts.

    Settings may come with downloaded weights, so a name in them never causes an import: the program that uses the
    weights has imported the module, or the user has listed it in the environment variable `REFCLI_HEADS`.

    Raises:
        ConfigError: the name is malformed, the module is neither imported nor trusted, or it has no such class.
    """
    module, attribute = _split(name)
    if module not in sys.modules:
        trusted = {each.strip() for each in os.environ.get(TRUSTED_VARIABLE, "").split(",")}
        if module not in trusted:
            raise ConfigError(
                f"the head {name!r} is not part of refcli, and its module is not imported",
                where=_WHERE,
                hint=f"if you trust it: import {module} first, or set the environment variable "
                f"{TRUSTED_VARIABLE}={module}",
            )
        _import(module)
    found = vars(sys.modules[module]).get(attribute)
    if found is None:
        raise ConfigError(f"the module {module} has no head {attribute!r}", where=_WHERE)
    return found


def _split(name: str) -> tuple[str, str]:
    """The module and the class of an own head's name."""
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise ConfigError(f"{name[:200]!r} is not the name of a head", where=_WHERE, hint="package.module:ClassName")
    return parts["module"], parts["attribute"]


def _import(module: str) -> None:
    try:
        import_module(module)
    except Exception as problem:  # a module of the user may fail in any way
        raise ConfigError(
            f"the module {module} of the head cannot be imported: {type(problem).__name__}: {problem}",
            where=_WHERE,
            hint="install its package, or add its folder to PYTHONPATH",
        ) from problem
