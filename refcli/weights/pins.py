"""The lock file: which commit and checksum each pulled file had, so that the next machine or year gets the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from filelock import FileLock
from pydantic import Field, ValidationError

from refcli.config.schema import Settings
from refcli.errors import WeightsError
from refcli.files import write_atomically
from refcli.weights.locate import has_home, home, is_file


class Pin(Settings):
    """Exactly which file some weights came from."""

    repo: str
    file: str
    revision: str
    sha256: str
    num_bytes: int


class LockFile(Settings):
    """The content of `weights.lock.json`."""

    version: Literal[1] = 1
    weights: dict[str, Pin] = Field(default_factory=dict)
    """Catalogue name or hf:// address -> its file."""


def lock_path() -> Path:
    """Where pins are kept; the file may be copied to other machines."""
    return home() / "weights.lock.json"


def read_pins() -> Mapping[str, Pin]:
    """Every pin; empty if nothing was ever pinned.

    Raises:
        WeightsError: the lock file is damaged.
    """
    if not has_home():
        return {}
    path = lock_path()
    if not is_file(path):
        return {}
    try:
        return LockFile.model_validate_json(path.read_bytes()).weights
    except (OSError, ValidationError) as problem:
        raise WeightsError(
            "the lock file cannot be read",
            where=str(path),
            hint=f"mend or remove it ({' '.join(str(problem).split())[:200]})",
        ) from problem


def write_pin(name: str, pin: Pin) -> None:
    """Add or replace one pin, also while others write theirs; errors as `read_pins`."""
    path = lock_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        content = LockFile(weights={**read_pins(), name: pin})
        write_atomically(path, (json.dumps(content.model_dump(), indent=2, sort_keys=True) + "\n").encode())
