"""What is known about a data set before it is prepared: its file in `data_specs/datasets`."""

from __future__ import annotations

from refcli.config.load import read_yaml, validate
from refcli.config.presets import data_specs_root
from refcli.config.schema import Settings


class DatasetSpec(Settings):
    """One data set in words."""

    description: str
    """One line."""
    licence: str
    origin: str
    """Who made it, and where it comes from."""


def load_spec(name: str) -> DatasetSpec:
    """The specification of a data set that ships with refcli.

    Raises:
        ConfigError: there is no such file, or it lacks a key.
    """
    path = data_specs_root() / "datasets" / f"{name}.yaml"
    return validate(DatasetSpec, read_yaml(path), where=str(path))
