"""Label Studio's run lengths of brush masks, in both directions.

The format is `rle-pack` of thi.ng/umbrella. The header has 32 bits for the number of values, 5 for the word size less
one, and four times 4 for the sizes of run lengths less one. Each block has one bit (1: one value is repeated, 0: values
follow one by one), two that select a size, the number of values less one in that size, and the values. The values are
those of an RGBA image, row by row; the region is where alpha is not 0.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from refcli.contracts.example import RLE
from refcli.errors import DataError
from refcli.geometry.masks import decode_mask, encode_mask

CHANNELS = 4
LONGEST_RUN = 1 << 16
_WORD_BITS = 8


def brush_run_lengths(mask: RLE) -> list[int]:
    """A mask in the run lengths of Label Studio's brush, as a list of bytes."""
    pixels = decode_mask(mask).ravel(order="C")
    edges = np.flatnonzero(np.diff(pixels)) + 1
    starts = np.concatenate(([0], edges))
    lengths = CHANNELS * np.diff(np.concatenate((starts, [pixels.size])))
    values = np.where(pixels[starts], 255, 0)
    pieces = -(-lengths // LONGEST_RUN)
    values, whole = np.repeat(values, pieces), np.full(int(pieces.sum()), LONGEST_RUN)
    whole[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * LONGEST_RUN
    header = _bits(np.array([CHANNELS * pixels.size]), 32), _bits(np.array([7]), 5), _bits(np.array([2, 3, 7, 15]), 4)
    # every run: 1, size 3 (16 bits), length - 1, value
    runs = np.concatenate([_bits(np.full(len(whole), 0b111), 3), _bits(whole - 1, 16), _bits(values, 8)], axis=1)
    bits = np.concatenate([*(part.ravel() for part in header), runs.ravel()])
    return [int(byte) for byte in np.packbits(bits)]


def brush_mask(run_lengths: bytes, width: int, height: int) -> RLE:
    """The mask in the run lengths of Label Studio's brush, for an image of that size in pixels.

    Raises:
        DataError: the run lengths are truncated, or are not those of an RGBA image of that size.
    """
    bits = _BitReader(run_lengths)
    num_values, word_bits = bits.number(32), bits.number(5) + 1
    if num_values != CHANNELS * width * height or word_bits != _WORD_BITS:
        raise DataError(
            f"the brush mask has {num_values:,} values of {word_bits} bits; an image of {width} x {height} pixels has "
            f"{CHANNELS * width * height:,} of {_WORD_BITS}"
        )
    sizes = [bits.number(4) + 1 for _ in range(4)]
    values = np.zeros(num_values, dtype=np.uint8)
    done = 0
    while done < num_values:
        is_repeated = bits.number(1)
        end = done + bits.number(sizes[bits.number(2)]) + 1
        if end > num_values:
            raise DataError("the run lengths of the brush mask are longer than its image")
        values[done:end] = bits.number(_WORD_BITS) if is_repeated else bits.bytes(end - done)
        done = end
    return encode_mask(values.reshape(height, width, CHANNELS)[:, :, -1] > 0)


class _BitReader:
    """Numbers of any size from a sequence of bits, the highest bit first."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    def number(self, count: int) -> int:
        """The number in the next bits."""
        first, last = self._advance(count)
        shift = -last % 8
        return int.from_bytes(self._data[first // 8 : -(-last // 8)], "big") >> shift & ((1 << count) - 1)

    def bytes(self, count: int) -> UInt8[np.ndarray, " count"]:
        """The numbers in the next groups of 8 bits."""
        first, last = self._advance(8 * count)
        shift = first % 8
        part = np.frombuffer(self._data[first // 8 : -(-last // 8)], dtype=np.uint8).astype(np.uint16)
        if not shift:
            return part.astype(np.uint8)
        return ((part[:-1] << shift | part[1:] >> (8 - shift)) & 0xFF).astype(np.uint8)

    def _advance(self, count: int) -> tuple[int, int]:
        first = self._place
        self._place += count
        if self._place > 8 * len(self._data):
            raise DataError("the run lengths of the brush mask are truncated")
        return first, self._place


def _bits(numbers: np.ndarray, count: int) -> np.ndarray:
    """(numbers, count) bits, the highest first."""
    return ((numbers[:, None] >> np.arange(count - 1, -1, -1)) & 1).astype(np.uint8)
