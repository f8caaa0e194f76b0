"""Resolved settings as YAML from which they can be loaded again."""

from __future__ import annotations

import yaml
from pydantic import BaseModel


class _ShortListDumper(yaml.SafeDumper):
    """Keeps lists of plain values on one line: `betas: [0.9, 0.999]`."""


def _short_list(dumper: yaml.SafeDumper, values: list[object]) -> yaml.SequenceNode:
    plain = not any(isinstance(value, list | dict) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=plain)


_ShortListDumper.add_representer(list, _short_list)


def explain(settings: BaseModel) -> str:
    """Every setting with its resolved value, in the order and structure of the schema; ends with a newline."""
    return yaml.dump(settings.model_dump(mode="json"), Dumper=_ShortListDumper, sort_keys=False, allow_unicode=True)
