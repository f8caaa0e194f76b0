"""Checks the jaxtyping annotations of arrays and tensors while tests run."""

from __future__ import annotations

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

CHECKED = ("refcli.model", "refcli.heads", "refcli.losses", "refcli.geometry")
check_types = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""An integer may stand for a float, as for type checkers."""


def check_shapes() -> None:
    """Check shapes and types in every call of the rooms `CHECKED`; their modules must not be imported yet."""
    install_import_hook(list(CHECKED), "shape_checks.check_types")
