"""From the name of a head, and what is said of its settings, to its class and all of its settings."""

from __future__ import annotations

from typing import Any

from refcli.config.load import validate
from refcli.config.schema import HeadChoice, ModelSettings, Settings
from refcli.heads.base import Head
from refcli.heads.table import HEADS
from refcli.tables import lookup


def head_class(name: str) -> type[Head[Any]]:
    """The class of a head.

    Raises:
        ConfigError: there is no head of that name.
    """
    found: type[Head[Any]] = lookup(HEADS, name, what="head")
    return found


def head_settings(choice: HeadChoice, *, where: str = "model.head.settings") -> Settings:
    """The head's own settings, defaults included.

    Args:
        where: what they are called in an error.

    Raises:
        ConfigError: an unknown head, a setting that it does not have, or a value that does not fit.
    """
    return validate(head_class(choice.name).Config, choice.settings, where=where)


def with_whole_head(model: ModelSettings) -> ModelSettings:
    """The same model with every setting of its head said: it stays the same should a later version change a default.

    Raises:
        ConfigError: as `head_settings`.
    """
    head = model.head.model_copy(update={"settings": head_settings(model.head).model_dump(mode="json")})
    return model.model_copy(update={"head": head})
