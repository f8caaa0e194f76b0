"""The heads by name, and the checked settings of each."""

from __future__ import annotations

from typing import Any

from refcli.config.load import validate
from refcli.config.own_heads import find_own_head, is_own_head
from refcli.config.schema import HeadChoice, ModelSettings, Settings
from refcli.errors import ConfigError
from refcli.heads.base import Head, OutputName
from refcli.tables import lookup

HEADS: dict[str, str] = {
    "cgformer": "refcli.heads.cgformer.head:CGFormerHead",
    "instances": "refcli.heads.instances.head:InstancesHead",
    "oneref": "refcli.heads.oneref.head:OneRefHead",
    "rela": "refcli.heads.rela.head:RelaHead",
    "shared_ris": "refcli.heads.shared_ris.head:SharedRISHead",
}


def head_class(name: str) -> type[Head[Any]]:
    """The class of a head: a row of the table, or "package.module:ClassName" (see `find_own_head`).

    Raises:
        ConfigError: there is no head of that name, or its module is neither imported nor trusted.
    """
    if not is_own_head(name):
        row: type[Head[Any]] = lookup(HEADS, name, what="head")
        return row
    found = find_own_head(name)
    if not (isinstance(found, type) and issubclass(found, Head)):
        raise ConfigError(f"{name} is not a subclass of refcli.Head", where="model.head.name")
    return found


def head_settings(choice: HeadChoice, *, where: str = "model.head.settings") -> Settings:
    """The head's own settings, defaults included.

    Args:
        where: their name in an error.

    Raises:
        ConfigError: an unknown head, a setting that it does not have, or a value that does not fit.
    """
    return validate(head_class(choice.name).Config, choice.settings, where=where)


def head_outputs(choice: HeadChoice) -> tuple[OutputName, ...]:
    """The outputs of a head with these settings.

    Raises:
        ConfigError: as `head_settings`.
    """
    outputs, config = head_class(choice.name).OUTPUTS, head_settings(choice)
    return tuple(name for name, output in outputs.items() if output.switch is None or getattr(config, output.switch))


def with_head_defaults(model: ModelSettings) -> ModelSettings:
    """The same model with every setting of its head spelled out, so that later versions' defaults do not change it.

    Raises:
        ConfigError: as `head_settings`.
    """
    head = model.head.model_copy(update={"settings": head_settings(model.head).model_dump(mode="json")})
    return model.model_copy(update={"head": head})
