"""meta.json: where weights are from and how they came about."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refcli.errors import WeightsError
from refcli.files import write_atomically
from refcli.weights.locate import META_FILE, is_file

MAX_META_BYTES, MAX_META_DEPTH = 8 << 20, 24
"""That of the largest converted model, which names all tensors, has 100 kB."""


def read_meta(directory: Path) -> dict[str, Any]:
    """What meta.json says about the weights; empty if there is none.

    Raises:
        WeightsError: it cannot be read, or is no mapping.
    """
    path = directory / META_FILE
    if not is_file(path):
        return {}
    try:
        with path.open("rb") as file:
            text = file.read(MAX_META_BYTES + 1)
        if len(text) > MAX_META_BYTES:
            raise ValueError(f"it has more than {MAX_META_BYTES:,} bytes")
        meta = json.loads(text)
        if _is_deeper(meta, MAX_META_DEPTH):
            raise ValueError(f"it has more than {MAX_META_DEPTH} levels of values")
    except (OSError, ValueError, RecursionError) as problem:
        raise WeightsError("meta.json cannot be read", where=str(path), hint=str(problem)) from problem
    if not isinstance(meta, dict):
        raise WeightsError("meta.json is no mapping of keys to values", where=str(path))
    return meta


def _is_deeper(value: object, levels: int) -> bool:
    """Whether values lie in one another on more levels."""
    if not isinstance(value, dict | list):
        return False
    inside = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(one, levels - 1) for one in inside)


def write_meta(directory: Path, meta: Mapping[str, object]) -> None:
    """Replace meta.json."""
    write_atomically(directory / META_FILE, meta_text(meta))


def meta_text(meta: Mapping[str, object]) -> bytes:
    """The content of meta.json."""
    return (json.dumps(meta, indent=2) + "\n").encode()
