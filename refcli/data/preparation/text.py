"""Repairing expressions: encoding accidents, control characters, blanks."""

from __future__ import annotations

import unicodedata


def repair_text(text: str) -> str:
    """The text as it was meant: NFC, single blanks, no control characters, UTF-8 that was read as latin-1 mended.

    Spelling, case and punctuation stay.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", _mend_encoding(text))
    if not text.isprintable():
        text = "".join(" " if unicodedata.category(letter) in ("Cc", "Zl", "Zp") else letter for letter in text)
    return " ".join(text.split())


def _mend_encoding(text: str) -> str:
    """Text whose UTF-8 bytes were taken for latin-1, read right; any other text as it is."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text
