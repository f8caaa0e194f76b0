"""A tokenizer for the tiny models."""

from __future__ import annotations

import io
from pathlib import Path

import sentencepiece


def write_small_tokenizer(path: Path) -> Path:
    """Write a SentencePiece file small enough for the 200 ids of the tiny models."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the red star is left of the blue ring"] * 50),
        model_writer=model,
        vocab_size=30,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return path
