"""Expressions -> token ids: SentencePiece with the ids of BEiT-3."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence, Set
from dataclasses import dataclass
from importlib.resources import files
from itertools import accumulate
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
ORDINARY_MARKS = '!?:;"'
"""A tokenizer with pieces for all of them was trained with punctuation, so expressions keep theirs."""
PLAIN_MARKS = {
    letter: plain
    for plain, letters in {'"': "“”„‟«»", "'": "‘’‚‛′`´", "-": "‐‑‒–—―−", ",": "、，", ".": "。"}.items()
    for letter in letters
}
"""Replacement of a mark for which a tokenizer has no piece."""
ASCII_MARKS = frozenset("$+<=>|~")
"""Marks that are symbols in Unicode."""
ZERO_WIDTH_SPACE = "\u200b"
"""It separates words, unlike the other invisible characters."""
VARIANTS = frozenset(map(chr, range(0xFE00, 0xFE10)))
"""Variation selectors: they change the shape of the previous character."""
UNLEARNED_MARKS = frozenset(",.-")
"""Marks for which the packaged tokenizer has pieces, but which the packaged model was not trained on."""
_OUTER_APOSTROPHE = re.compile(r"(?<!\w)'+|'+(?!\w)")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Reading:
    """The part of an expression that a model reads."""

    text: str
    """The expression without marks for which the tokenizer has no pieces."""
    unknown_words: tuple[str, ...]
    """Words, as written, that the tokenizer knows only in part or not at all."""
    unread_text: str
    """The truncated end, from the first word that is not read completely; empty without one."""
    token_ids: tuple[int, ...]
    """Ids of `text` with <s> and </s>, as `Tokenizer.encode` gives them."""


class Tokenizer:
    """A SentencePiece model with BEiT-3's ids: <s> 0, <pad> 1, </s> 2, <unk> 3, piece s -> s + 1, <mask> last."""

    def __init__(self, model: bytes, *, max_tokens: int) -> None:
        self.model = model
        self.max_tokens = max_tokens
        self._pieces = spm.SentencePieceProcessor(model_proto=model)
        self._unknown_piece: int = self._pieces.unk_id()
        self._known: dict[str, bool] = {}
        """Cache of known and unknown marks and letters."""
        self._knows_marks = self.num_pieces == OFFICIAL_NUM_PIECES or all(map(self._knows, ORDINARY_MARKS))

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
                "the tokenizer file is missing",
                where=str(path),
                hint="`refcli weights pull beit3-tokenizer` downloads it, or put it there yourself"
                if path.name == OFFICIAL_NAME
                else "put the SentencePiece file of the model there",
            )
        try:
            tokenizer = cls(path.read_bytes(), max_tokens=settings.max_tokens)
            tokenizer.encode("a")  # some damaged models load and then encode nothing
        except (RuntimeError, ValueError, ExpressionError) as problem:
            raise WeightsError(
                "this is not a SentencePiece model", where=str(path), hint=f"published models read {OFFICIAL_NAME}"
            ) from problem
        if path.name == OFFICIAL_NAME and tokenizer.num_pieces != OFFICIAL_NUM_PIECES:
            raise WeightsError(
                f"beit3.spm must have {OFFICIAL_NUM_PIECES:,} pieces, this one has {tokenizer.num_pieces:,}",
                where=str(path),
                hint="the file is truncated or another model's; download it again",
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
            ExpressionError: the expression has no word.
        """
        pieces = self._split(_lower(expression))
        if not pieces:
            raise ExpressionError("the expression is empty", where=repr(expression), hint="describe the object to find")
        ids = [UNK if piece == self._unknown_piece else piece + PIECE_OFFSET for piece in pieces]
        return [BOS, *ids[: self.max_tokens - 2], EOS]

    def read(
        self, expression: str, *, unlearned_marks: Set[str] = frozenset(), learned_words: Set[str] | None = None
    ) -> Reading:
        """Split an expression into the text that the model reads and the parts that it cannot read.

        For a tokenizer that was trained without punctuation, unknown marks are replaced by a plainer known mark or
        removed, and unknown letters lose their accents. For every other tokenizer the expression is unchanged.

        Args:
            expression: any text.
            unlearned_marks: marks that have pieces but that the model was not trained on.
            learned_words: all words that the model was trained on, in lower case; None: any word of known pieces.

        Raises:
            ExpressionError: the expression has no word.
        """
        text = self.plain(expression, unlearned_marks=unlearned_marks)
        is_bare = any(map(str.isalnum, text)) or text != expression
        token_ids = self.encode(text)
        is_read_whole = UNK not in token_ids and len(token_ids) < self.max_tokens
        if is_read_whole and learned_words is None:
            return Reading(text, (), "", tuple(token_ids))
        words = expression.split()
        plain = [_lower(self._without_marks(word, unlearned_marks) if is_bare else word) for word in words]
        pieces: list[list[int]] = [[] for _ in words] if is_read_whole else list(map(self._split, plain))
        unknown = tuple(
            word
            for word, bare, ids in zip(words, plain, pieces, strict=True)
            if self._unknown_piece in ids or not (learned_words is None or set(_parts(bare)) <= learned_words)
        )
        ends = accumulate(map(len, pieces))
        cut = next((number for number, end in enumerate(ends) if end > self.max_tokens - 2), len(words))
        return Reading(text, unknown, " ".join(words[cut:]), tuple(token_ids))

    def plain(self, expression: str, *, unlearned_marks: Set[str] = frozenset()) -> str:
        """The expression without the marks that `read` removes; an expression of such marks only is unchanged."""
        text = self._without_marks(expression, unlearned_marks)
        return text if text.strip() else expression

    def encode_batch(self, expressions: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Ids padded to the longest expression of the batch, and True where a slot is padding."""
        return pad_token_ids([self.encode(expression) for expression in expressions])

    def piece_roles(self, expressions: Sequence[str], *, find: RoleFinder = find_roles) -> NDArray[np.int64]:
        """`SUBJECT` at all pieces of each expression's subject, `OBJECT` at those of its object, else 0.

        Args:
            expressions: as for `encode_batch`; the result is aligned with its ids.
            find: finds both words in a lower-case expression.
        """
        found = [self._piece_roles(_lower(expression), find) for expression in expressions]
        roles = np.zeros((len(found), max(map(len, found))), dtype=np.int64)
        for row, of_pieces in zip(roles, found, strict=True):
            row[: len(of_pieces)] = of_pieces
        return roles

    def _split(self, text: str) -> list[int]:
        pieces: list[int] = self._pieces.encode(text, out_type=int)
        return pieces

    def _knows(self, mark: str) -> bool:
        if mark not in self._known:
            self._known[mark] = self._unknown_piece not in self._split(mark)
        return self._known[mark]

    def _without_marks(self, expression: str, unlearned_marks: Set[str]) -> str:
        """The expression without marks that a vocabulary of bare words cannot represent."""
        if self._knows_marks:
            return expression
        plain = "".join(
            self._letter(character) if character.isalnum() else self._mark(character, unlearned_marks)
            for character in unicodedata.normalize("NFC", expression)
        )
        return _OUTER_APOSTROPHE.sub(" ", plain) if unlearned_marks else plain

    def _letter(self, letter: str) -> str:
        """A letter, without its accent if the tokenizer knows it only without."""
        if letter.isascii() or self._knows(letter.lower()):
            return letter
        base = "".join(part for part in unicodedata.normalize("NFD", letter) if not unicodedata.combining(part))
        return base if base and self._knows(base.lower()) else letter

    def _mark(self, character: str, unlearned_marks: Set[str]) -> str:
        """A mark in a form that the tokenizer knows, or a blank; other characters unchanged."""
        category = unicodedata.category(character)
        if category == "Cc" or character == ZERO_WIDTH_SPACE:
            return " "
        if category == "Cf" or character in VARIANTS:
            return ""
        if not (category[0] == "P" or category == "Sk" or character in ASCII_MARKS):
            return character
        written = (character, PLAIN_MARKS.get(character, character), unicodedata.normalize("NFKC", character))
        learned = (mark for mark in written if unlearned_marks.isdisjoint(unicodedata.normalize("NFKC", mark)))
        return next(filter(self._knows, learned), " ")

    def _piece_roles(self, expression: str, find: RoleFinder) -> NDArray[np.int64]:
        """The roles of <s>, of the pieces up to the truncation, and of </s>."""
        offsets = self._pieces.encode(expression, return_type="offset_mapping")["offsets"]
        starts, stops = np.array(offsets[: self.max_tokens - 2], dtype=np.int64).reshape(-1, 2).T
        roles = np.zeros(len(starts) + 2, dtype=np.int64)
        found = find(expression)
        for role, span in ((OBJECT, found.object), (SUBJECT, found.subject)):
            if span is not None:
                # pieces of an expanded character have no width: "½" is "1", "⁄", "2"
                touched = (starts < span[1]) & ((stops > span[0]) | (starts >= span[0]))
                roles[1:-1][touched] = role
        return roles


def pad_token_ids(encoded: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Ids of several expressions padded to the longest one, and True where a slot is padding."""
    token_ids = np.full((len(encoded), max(map(len, encoded))), PAD, dtype=np.int64)
    for row, ids in zip(token_ids, encoded, strict=True):
        row[: len(ids)] = ids
    return token_ids, token_ids == PAD


def _lower(text: str) -> str:
    """In lower case, and without lone surrogates, which have no UTF-8."""
    return _LONE_SURROGATE.sub("\ufffd", text.lower())


def _parts(text: str) -> list[str]:
    """The words of a text in compatibility normal form: full-width letters become plain ones."""
    return unicodedata.normalize("NFKC", text).split()
