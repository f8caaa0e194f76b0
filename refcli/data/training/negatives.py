"""Negative samples: expressions borrowed from other images, without a target."""

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

MAX_TRIES = 32
"""Number of expressions drawn for a sample before it is left unchanged."""
BETWEEN_WORDS = r"[\pP\s]+"
_SALT = 0x6E6F7461
"""Separates these draws from those of the augmentation, which has the same seed."""


class BorrowedExpressions:
    """Finds expressions of other images for samples that become negative samples.

    DeRIS trains on gRefCOCO in this way (Dai et al., arXiv 2507.01738: NSC; its published settings convert 0.15 of the
    samples and prefer similar expressions, which is not done here); the code of ReLA does not. Only expressions that
    have a target in their own image are borrowed, so that every wording occurs with and without a target and cannot
    give the answer away. An expression is not borrowed if it also describes the borrowing image: the same words, up to
    case and punctuation, or the same image id. Whether another expression is true of the image by chance is unknown.

    Args:
        splits: the splits of a data set, in the order of the row numbers.
        lenders: numbers of the rows whose expressions may be borrowed; each has a target in its own image.

    Raises:
        DataError: the rows of `lenders` have fewer than two images.
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
                hint="at least two images with a target are needed",
            )
        order = np.argsort(self._images, kind="stable")
        self._texts_by_image = self._texts[order]
        self._starts = np.searchsorted(self._images[order], np.arange(self._images.max() + 2))

    def lender(self, row: int, rng: random.Random) -> int | None:
        """A row whose expression is not used for the image of `row`; None if none is found."""
        image = self._images[row]
        own_texts = self._texts_by_image[self._starts[image] : self._starts[image + 1]]
        for _ in range(MAX_TRIES):
            lender = int(self._lenders[rng.randrange(len(self._lenders))])
            if self._texts[lender] not in own_texts:  # false for rows of the same image
                return lender
        return None


def borrowing_generator(draw: int, probability: float) -> random.Random | None:
    """The generator for `BorrowedExpressions.lender`; None if this draw does not borrow."""
    rng = random.Random(draw ^ _SALT)
    return rng if rng.random() < probability else None


def without_target(example: Example, borrowed: Example) -> Example:
    """The image of the example with the borrowed expression and no target."""
    return replace(example, expression=borrowed.expression, kind=borrowed.kind, regions=())


def _plain(texts: pa.ChunkedArray) -> pa.Array:
    lowered = pc.utf8_lower(texts.combine_chunks())
    return pc.utf8_trim(pc.replace_substring_regex(lowered, pattern=BETWEEN_WORDS, replacement=" "), characters=" ")


def _codes(parts: Sequence[pa.Array]) -> Int[np.ndarray, " rows"]:
    """A number for every row; equal texts have equal numbers."""
    joined = pa.concat_arrays([part.combine_chunks() if isinstance(part, pa.ChunkedArray) else part for part in parts])
    codes: Int[np.ndarray, " rows"] = joined.dictionary_encode().indices.to_numpy().astype(np.int64)
    return codes
