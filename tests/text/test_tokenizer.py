"""The tokenizer follows BEiT-3's id rule."""

import io

import numpy as np
import pytest
import sentencepiece as spm

from refcli.config.schema import TextSettings
from refcli.data.sources.synthetic import SyntheticSettings, iterate_expressions, vocabulary
from refcli.errors import ExpressionError, WeightsError
from refcli.text.tokenizer import BOS, EOS, PAD, UNK, Tokenizer


@pytest.fixture(scope="module")
def builtin() -> Tokenizer:
    return Tokenizer.load(TextSettings())


@pytest.fixture(scope="module")
def small_model() -> bytes:
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(["the red star is left of the blue ring"] * 50),
        model_writer=model,
        vocab_size=30,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()


def test_piece_ids_are_shifted_by_one(builtin):
    pieces = spm.SentencePieceProcessor(model_proto=builtin.model)
    expected = [piece + 1 for piece in pieces.encode("the red star")]
    assert builtin.encode("the red star") == [BOS, *expected, EOS]


def test_unknown_text_becomes_unk(builtin):
    assert builtin.encode("é")[-2:] == [UNK, EOS]


def test_case_and_spare_blanks_do_not_matter(builtin):
    assert builtin.encode("  The RED   star ") == builtin.encode("the red star")


def test_long_expressions_are_truncated_between_the_special_ids(small_model):
    tokenizer = Tokenizer(small_model, max_tokens=8)
    ids = tokenizer.encode("the red star " * 500)
    assert len(ids) == 8
    assert (ids[0], ids[-1]) == (BOS, EOS)
    assert PAD not in ids


def test_a_batch_is_padded_to_its_longest_expression(builtin):
    ids, is_pad = builtin.encode_batch(["the red star", "star"])
    assert ids.shape == (2, 5)
    assert np.array_equal(is_pad, ids == PAD)
    assert is_pad.sum() == 2
    assert ids[1].tolist()[:3] == builtin.encode("star")


@pytest.mark.parametrize("nothing", ["", "   ", "\n\t"])
def test_an_empty_expression_is_an_error(builtin, nothing):
    with pytest.raises(ExpressionError):
        builtin.encode(nothing)


def test_the_mask_id_follows_the_last_piece(builtin):
    assert builtin.mask_id == builtin.num_pieces + 1
    assert builtin.vocabulary_size == builtin.mask_id + 1


def test_the_packaged_pieces_know_the_generators_words(builtin):
    lengths = [len(builtin.encode(word)) - 2 for word in vocabulary()]
    assert np.mean([length == 1 for length in lengths]) > 0.9
    for sentence in iterate_expressions(SyntheticSettings(seed=3), 200):
        assert UNK not in builtin.encode(sentence)


def test_a_beit3_file_must_have_64000_pieces(tmp_path, small_model):
    path = tmp_path / "beit3.spm"
    path.write_bytes(small_model)
    with pytest.raises(WeightsError, match="64,000 pieces"):
        Tokenizer.load(TextSettings(tokenizer=str(path)))


def test_a_missing_or_foreign_tokenizer_file_is_an_error(tmp_path):
    with pytest.raises(WeightsError, match="is missing"):
        Tokenizer.load(TextSettings(tokenizer=str(tmp_path / "none.spm")))
    path = tmp_path / "other.spm"
    path.write_bytes(b"not a model")
    with pytest.raises(WeightsError, match="not a SentencePiece model"):
        Tokenizer.load(TextSettings(tokenizer=str(path)))
