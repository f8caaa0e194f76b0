"""Expressions to token ids: SentencePiece with the id rule of BEiT-3."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import sentencepiece as spm
from numpy.typing import NDArray

from refcli.config.schema import TextSettings
from refcli.errors import ExpressionError, WeightsError
from refcli.text.roles import RoleFinder, find_roles

BOS, PAD, EOS, UNK = 0, 1, 2, 3
"""Special ids of BEiT-3 (XLM-R's order)."""
PIECE_OFFSET = 1
"""A SentencePiece id s > 2 becomes token id s + 1."""
SUBJECT, OBJECT = 1, 2
"""Roles of pieces; 0 is any other."""
OFFICIAL_NAME = "beit3.spm"
OFFICIAL_NUM_PIECES = 64000


class Tokenizer:
    """A SentencePiece model with BEiT-3's ids: <s> 0, <pad> 1, </s> 2, <unk> 3, piece s -> s + 1, <mask> last."""

    def __init__(self, model: bytes, *, max_tokens: int) -> None:
        self.model = model
        self.max_tokens = max_tokens
        self._pieces = spm.SentencePieceProcessor(model_proto=model)
        self._unknown_piece: int = self._pieces.unk_id()

    @classmethod
    def load(cls, settings: TextSettings) -> Tokenizer:
        """Read the SentencePiece file that the settings name.

        Raises:
            WeightsError: no such file, not a SentencePiece model, or a `beit3.spm` that does not have 64,000 pieces.
        """
        if settings.tokenizer == "builtin":
            model = files("refcli.text").joinpath("builtin.spm").read_bytes()
            return cls(model, max_tokens=settings.max_tokens)
        path = Path(settings.tokenizer)
        if not path.is_file():
            raise WeightsError(
                "the tokenizer file is not there",
                where=str(path),
                hint="`refcli weights pull beit3-tokenizer` gets it, or put it there yourself"
                if path.name == OFFICIAL_NAME
                else "put the SentencePiece file there that the model was trained with",
            )
        try:
            tokenizer = cls(path.read_bytes(), max_tokens=settings.max_tokens)
        except RuntimeError as problem:
            raise WeightsError(
                "this is not a SentencePiece model", where=str(path), hint=f"published models read {OFFICIAL_NAME}"
            ) from problem
        if path.name == OFFICIAL_NAME and tokenizer.num_pieces != OFFICIAL_NUM_PIECES:
            raise WeightsError(
                f"beit3.spm must have {OFFICIAL_NUM_PIECES:,} pieces, this one has {tokenizer.num_pieces:,}",
                where=str(path),
                hint="the file is truncated or another model's; fetch it again",
            )
        return tokenizer

    @property
    def num_pieces(self) -> int:
        """Size of the SentencePiece vocabulary."""
        return int(self._pieces.get_piece_size())

    @property
    def mask_id(self) -> int:
        """Id of <mask>, after the last piece."""
        return self.num_pieces + PIECE_OFFSET

    @property
    def vocabulary_size(self) -> int:
        """Number of ids in use, <mask> included."""
        return self.mask_id + 1

    def encode(self, expression: str) -> list[int]:
        """Lower-case, split, map to ids, truncate to `max_tokens` and wrap in <s> ... </s>.

        Raises:
            ExpressionError: nothing is left to say.
        """
        pieces: list[int] = self._pieces.encode(expression.lower(), out_type=int)
        if not pieces:
            raise ExpressionError("the expression is empty", where=repr(expression), hint="say what to look for")
        ids = [UNK if piece == self._unknown_piece else piece + PIECE_OFFSET for piece in pieces]
        return [BOS, *ids[: self.max_tokens - 2], EOS]

    def encode_batch(self, expressions: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Ids padded to the longest expression of the batch, and True where a slot is padding."""
        encoded = [self.encode(expression) for expression in expressions]
        token_ids = np.full((len(encoded), max(map(len, encoded))), PAD, dtype=np.int64)
        for row, ids in zip(token_ids, encoded, strict=True):
            row[: len(ids)] = ids
        return token_ids, token_ids == PAD

    def piece_roles(self, expressions: Sequence[str], *, find: RoleFinder = find_roles) -> NDArray[np.int64]:
        """`SUBJECT` at all pieces of each expression's subject, `OBJECT` at those of its object, else 0.

        Args:
            expressions: as for `encode_batch`, with whose slots the result is aligned.
            find: finds the two words in a lower-case expression.
        """
        found = [self._piece_roles(expression.lower(), find) for expression in expressions]
        roles = np.zeros((len(found), max(map(len, found))), dtype=np.int64)
        for row, of_pieces in zip(roles, found, strict=True):
            row[: len(of_pieces)] = of_pieces
        return roles

    def _piece_roles(self, expression: str, find: RoleFinder) -> NDArray[np.int64]:
        """The roles of <s>, of the pieces that are not truncated, and of </s>."""
        offsets = self._pieces.encode(expression, return_type="offset_mapping")["offsets"]
        starts, stops = np.array(offsets[: self.max_tokens - 2], dtype=np.int64).reshape(-1, 2).T
        roles = np.zeros(len(starts) + 2, dtype=np.int64)
        found = find(expression)
        for role, span in ((OBJECT, found.object), (SUBJECT, found.subject)):
            if span is not None:
                # a sign that is written out has pieces of no width: "½" is "1", "⁄", "2"
                touched = (starts < span[1]) & ((stops > span[0]) | (starts >= span[0]))
                roles[1:-1][touched] = role
        return roles
