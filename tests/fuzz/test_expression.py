"""Any text has tokens, or is an empty expression."""

from __future__ import annotations

import pytest
from harness import NASTY, NUM_INPUTS, fuzz
from hypothesis import strategies as st

from refcli.config.schema import TextSettings
from refcli.drawing.lettering import font_for, readable, wrap
from refcli.text.tokenizer import UNLEARNED_MARKS, Tokenizer

WORDS = ("the", "red", "circle", "left", "of", "café", "ｒｅｄ", "猫", "!", "“", "—", "'s", "½", "x" * 300)


def texts() -> st.SearchStrategy[str]:
    pieces = st.one_of(
        st.sampled_from(WORDS),
        st.sampled_from([value for value in NASTY if isinstance(value, str)]),
        st.text(st.characters(), max_size=6),  # halves of surrogate pairs, too
        st.characters(categories=("P", "S", "C", "M", "Z")),
    )
    return st.lists(pieces, max_size=8).flatmap(
        lambda parts: st.sampled_from((" ", "")).map(lambda gap: gap.join(parts))
    )


@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
def test_any_text_has_tokens_or_is_empty(num_inputs):
    tokenizer = Tokenizer.load(TextSettings())

    def read(text: str) -> None:
        reading = tokenizer.read(text, unlearned_marks=UNLEARNED_MARKS, learned_words=frozenset(("red", "circle")))
        assert len(tokenizer.encode(reading.text)) <= tokenizer.max_tokens
        assert set(reading.unknown_words) <= set(text.split())
        assert " ".join(text.split()).endswith(reading.unread_text)
        roles = tokenizer.piece_roles([reading.text])
        assert roles.shape == tokenizer.encode_batch([reading.text])[0].shape

    fuzz(texts(), read, num_inputs)


@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
def test_any_text_can_be_drawn(num_inputs):
    def draw(text: str) -> None:
        shown = readable(text, "line 3")
        font = font_for(shown, 16)
        assert all(font.getlength(line) <= 200 for line in wrap(shown, font, 200, 3))

    fuzz(texts(), draw, num_inputs)
