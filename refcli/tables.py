"""Tables of names: each row is imported on first use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher, get_close_matches
from itertools import takewhile
from typing import Any

from refcli.errors import ConfigError
from refcli.exports import imported


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most similar to `name`, or None if none is similar."""
    matches = get_close_matches(name, list(known), n=3, cutoff=0.5)
    return max(matches, key=lambda one: _likeness(one, name), default=None)


def _likeness(one: str, name: str) -> tuple[float, int]:
    """The similarity of two names; of equally similar names, that with more letters in common at its start wins."""
    start = takewhile(lambda pair: pair[0] == pair[1], zip(one, name, strict=False))
    return SequenceMatcher(None, one, name).ratio(), len(list(start))


def did_you_mean(name: str, known: Iterable[str], *, rest: str | None = None) -> str:
    """The hint about an unknown name: the nearest known one, if one is similar, then `rest`.

    Args:
        name: the name that the user gave.
        known: all valid names, in the order to list them.
        rest: the end of the hint; None lists the known names.
    """
    names = list(known)
    guess = nearest(name, names)
    if rest is None:
        rest = "known: " + (", ".join(names) or "none")
    return (f"did you mean {guess!r}? " if guess else "") + rest


def lookup(table: Mapping[str, str], name: str, *, what: str) -> Any:  # noqa: ANN401 - a row may be anything
    """Import the object in row `name` of a table.

    Args:
        table: name -> "package.module:attribute".
        name: the row wanted.
        what: the kind of the rows ("head", "source"), for the error.

    Raises:
        ConfigError: no such row; the hint names the nearest one.
    """
    if name not in table:
        raise ConfigError(f"there is no {what} called {name!r}", where=what, hint=did_you_mean(name, sorted(table)))
    return imported(table[name])
