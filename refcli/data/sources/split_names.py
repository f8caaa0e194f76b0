"""The split in the name of a file."""

from __future__ import annotations

import re
from pathlib import Path

from refcli.data.reading.streams import stem

SPLITS_BY_WORD = {
    word.casefold(): word for word in ("train", "trainval", "val", "test", "testA", "testB", "testC", "minival")
} | dict.fromkeys(("valid", "validation", "dev"), "val")
"""Word of a file name, without the year that may follow it -> split."""


def split_in(file: Path) -> str | None:
    """The last word of a file name that is a split, without the year that may follow it; None if none is."""
    words = (word.casefold().rstrip("0123456789") for word in reversed(re.split("[._-]", stem(file))))
    return next((SPLITS_BY_WORD[word] for word in words if word in SPLITS_BY_WORD), None)
