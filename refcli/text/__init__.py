"""Expressions: tokenisation, position words, subject and object; boxes in the texts of other models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refcli.exports import lazy_exports

__all__ = ["Roles", "Tokenizer", "find_roles"]

if TYPE_CHECKING:
    from refcli.text.roles import Roles, find_roles
    from refcli.text.tokenizer import Tokenizer
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "refcli.text.roles": "Roles find_roles",
            "refcli.text.tokenizer": "Tokenizer",
        },
    )
