"""Train the packaged SentencePiece model on expressions of the synthetic generator.

    python tools/train_tokenizer.py refcli/text/builtin.spm

The result depends only on the generator's expressions: the same expressions give the same pieces.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import sentencepiece as spm

from refcli.data.sources.synthetic import SyntheticSettings, iterate_expressions
from refcli.files import write_atomically

NUM_SENTENCES = 60_000
NUM_PIECES = 640
"""Enough for every word of the generator as one piece, and for the single characters of all other words."""
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


def main() -> None:
    """Parse the arguments and train the tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--sentences", type=int, default=NUM_SENTENCES, help="number of generated expressions")
    given = parser.parse_args()
    train_tokenizer(given.out, num_sentences=given.sentences)


if __name__ == "__main__":
    main()
