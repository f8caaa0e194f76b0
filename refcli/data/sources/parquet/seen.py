"""A compact set of ids: one bit for each whole number."""

from __future__ import annotations

from refcli.data.sources.rows import whole_number

_MAX_BITS = 1 << 27
"""Ids below this take a bit each, 16 MiB at most; COCO's are below a million."""


class SeenIds:
    """The ids of rows so far."""

    def __init__(self) -> None:
        self._bits = bytearray()
        self._others: set[int] = set()

    def add(self, value: object) -> bool:
        """Add an id; returns whether it is new. Texts of digits are numbers."""
        number = whole_number(value)
        if number is None or number >= _MAX_BITS:
            found = hash(str(value))
            is_new = found not in self._others
            self._others.add(found)
            return is_new
        byte, bit = number >> 3, 1 << (number & 7)
        if byte >= len(self._bits):
            self._bits.extend(bytes(2 * (byte + 1) - len(self._bits)))
        is_new = not self._bits[byte] & bit
        self._bits[byte] |= bit
        return is_new
