"""Repairing expressions: encoding accidents, control characters, blanks."""

from __future__ import annotations

import unicodedata

_BLANKS = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Categories of characters that become a blank: controls, halves of surrogate pairs, line and paragraph ends."""
_WINDOWS = {code: bytes([code]).decode("cp1252", errors="ignore") or " " for code in range(0x80, 0xA0)}
"""What the codes of latin-1's control characters mean in Windows-1252."""


def repair_text(text: str) -> str:
    """The text as it was meant: NFC, single blanks, no control characters or halves of surrogate pairs, UTF-8 or
    Windows-1252 that was read as latin-1 mended.

    Spelling, case and punctuation stay.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", _mend_encoding(text))
    if not text.isprintable():
        text = "".join(" " if unicodedata.category(letter) in _BLANKS else letter for letter in text)
    return " ".join(text.split())


def _mend_encoding(text: str) -> str:
    """Text whose UTF-8 or Windows-1252 bytes were taken for latin-1, read right; any other text as it is."""
    try:
        text = text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text.translate(_WINDOWS)
    return text.translate(_WINDOWS)
