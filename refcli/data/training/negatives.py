"""Expressions borrowed from other pictures: samples in which nothing is meant."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from refcli.contracts.example import Example
from refcli.data.store.read import StoreSplit
from refcli.errors import DataError

TRIES = 32
"""Expressions drawn for a sample before it is left as it is."""
BETWEEN_WORDS = r"[\pP\s]+"
_SALT = 0x6E6F7461
"""Keeps these draws apart from those of the picture's changes, which start from the same number."""


class BorrowedExpressions:
    """Gives some samples the expression of another picture, of which nothing in theirs is then taken to be meant.

    DeRIS trains on gRefCOCO in this way (Dai et al., arXiv 2507.01738: NSC; its published settings convert 0.15 of the
    samples, and look for similar expressions, which is not done here); the code of ReLA does not. Only expressions that
    mean something in their own picture are lent, so that every wording is seen with and without a target and cannot
    give the answer away. One that somebody says of the borrowing picture as well is not taken: the same words, whatever
    their case and punctuation, or of a picture with the same id. That some of the others are true of the picture by
    accident cannot be told.

    Args:
        splits: the splits of a data set, in the order of the row numbers.
        lenders: numbers of the rows whose expressions may be borrowed: they mean something in their own picture.

    Raises:
        DataError: nothing can be borrowed.
    """

    def __init__(self, splits: Sequence[StoreSplit], lenders: Int[np.ndarray, " lenders"]) -> None:
        texts, images = [], []
        for split in splits:
            for table in split.tables(["image_id", "expression"]):
                texts.append(_plain(table.column("expression")))
                images.append(table.column("image_id").combine_chunks())
        self._texts, self._images = _codes(texts), _codes(images)
        self._lenders = lenders
        if len(np.unique(self._images[self._lenders])) < 2:
            raise DataError(
                "no expression of another image can be borrowed: there are none",
                where="data.augment.no_target",
                hint="it needs two images at least in which something is meant",
            )
        order = np.argsort(self._images, kind="stable")
        self._texts_by_image = self._texts[order]
        self._starts = np.searchsorted(self._images[order], np.arange(self._images.max() + 2))

    def lender(self, row: int, rng: random.Random) -> int | None:
        """A row whose expression nobody says of the picture of `row`; None where none is found."""
        image = self._images[row]
        said = self._texts_by_image[self._starts[image] : self._starts[image + 1]]
        for _ in range(TRIES):
            lender = int(self._lenders[rng.randrange(len(self._lenders))])
            if self._texts[lender] not in said:  # what is said of the picture itself is among it
                return lender
        return None


def borrows(draw: int, probability: float) -> random.Random | None:
    """The generator to find a lender with, or None where this draw borrows nothing."""
    rng = random.Random(draw ^ _SALT)
    return rng if rng.random() < probability else None


def without_target(example: Example, borrowed: Example) -> Example:
    """The example's picture with the other's expression, and nothing meant in it."""
    return replace(example, expression=borrowed.expression, kind=borrowed.kind, regions=())


def _plain(texts: pa.ChunkedArray) -> pa.Array:
    lowered = pc.utf8_lower(texts.combine_chunks())
    return pc.utf8_trim(pc.replace_substring_regex(lowered, pattern=BETWEEN_WORDS, replacement=" "), characters=" ")


def _codes(parts: Sequence[pa.Array]) -> Int[np.ndarray, " rows"]:
    """A number for every row; equal texts have equal numbers."""
    whole = pa.concat_arrays([part.combine_chunks() if isinstance(part, pa.ChunkedArray) else part for part in parts])
    codes: Int[np.ndarray, " rows"] = whole.dictionary_encode().indices.to_numpy().astype(np.int64)
    return codes
