"""Train the packaged SentencePiece model on our own generated expressions.

    python -m refcli.recipes.train_tokenizer refcli/text/builtin.spm

The result depends on the generator's sentences only: same sentences, same pieces.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import sentencepiece as spm

from refcli.data.sources.synthetic import SyntheticSettings, iterate_expressions
from refcli.files import write_atomically

NUM_SENTENCES = 60_000
NUM_PIECES = 640
"""Every word of the generator as one piece, and single characters for all others."""
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789'-,."


def train_tokenizer(path: Path, *, num_sentences: int = NUM_SENTENCES, num_pieces: int = NUM_PIECES) -> None:
    """Write a BPE SentencePiece model whose special pieces are BEiT-3's (<unk>, <s>, </s>)."""
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iterate_expressions(SyntheticSettings(seed=0), num_sentences),
        model_writer=model,
        model_type="bpe",
        vocab_size=num_pieces,
        hard_vocab_limit=False,
        character_coverage=1.0,
        required_chars=CHARACTERS,
        num_threads=1,
        shuffle_input_sentence=False,
        minloglevel=2,
    )
    write_atomically(path, model.getvalue())


if __name__ == "__main__":
    train_tokenizer(Path(sys.argv[1]))
