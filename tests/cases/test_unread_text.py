"""Text that a model cannot read is dropped if it carries no meaning, and reported otherwise."""

from __future__ import annotations

import io
import json

import pytest
import sentencepiece as spm
from PIL import Image

from refcli.answers.jsonl import answer_from_json
from refcli.config.schema import TextSettings
from refcli.data.sources.synthetic import SyntheticSettings, iterate_expressions, render_scene
from refcli.data.training.collate import Collate
from refcli.errors import DataError, ExpressionError
from refcli.text.tokenizer import UNK, UNLEARNED_MARKS, Tokenizer

SENTENCES = ("the red cup!", "is it the red cup?", "left; right: up, down. 'so' \"so\" - the cup")


@pytest.fixture(scope="module")
def builtin() -> Tokenizer:
    return Tokenizer.load(TextSettings())


def trained(*sentences: str, max_tokens: int = 64) -> Tokenizer:
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 50),
        model_writer=model,
        model_type="char",
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return Tokenizer(model.getvalue(), max_tokens=max_tokens)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """An image and an expression for an object in it."""
    made = render_scene(SyntheticSettings(seed=3), "demo", 0)
    path = tmp_path_factory.mktemp("scene") / "a.png"
    Image.fromarray(made.image).save(path)
    return path, next(example.expression for example in made.examples if example.regions)


def test_marks_do_not_change_what_is_found(refcli, scene):
    path, expression = scene
    written = [f"{expression}{mark}" for mark in [*".!?,:;…！？。~|", " ?!", "...", " - ", "\x00", "\u200b", "\ufeff"]]
    written += [f'"{expression}"', f"“{expression}”", f"'{expression}'", f"«{expression}»", f"({expression})"]
    written += [
        f"¿{expression}?",
        expression.replace(" ", ", ", 1),
        expression.replace(" ", "-", 1),
        expression.replace(" ", "\u200b", 1),
        f"{expression} \ufe0f",
        expression.upper(),
    ]
    _, out, err = refcli("predict", path, *(part for text in [expression, *written] for part in ("-e", text)))
    first, *others = map(json.loads, out.splitlines())
    assert first["targets"]
    for text, answer in zip(written, others, strict=True):
        assert answer["expression"] == text
        assert answer["targets"][0]["box"] == pytest.approx(first["targets"][0]["box"], abs=0.5), text
        assert "unknown_words" not in answer
    assert "unknown_words" not in err


@pytest.mark.parametrize("marks", ["!?,:;", "“”‘’…—", "()[]{}*&%$#@/\\~|<>=+^`", "！？，"])
def test_a_tokenizer_that_knows_punctuation_gets_every_expression_unchanged(marks):
    tokenizer = trained(*SENTENCES)
    for text in (f"the red cup{marks}", marks, f"{marks} the cup", "the\tcup \x00"):
        assert tokenizer.plain(text) == text


def test_a_mark_is_replaced_by_the_plainer_one_that_the_tokenizer_has():
    tokenizer = trained('the cup\'s "red" - side')
    assert tokenizer.plain("the cup’s “red” — side! (x)") == 'the cup\'s "red" - side   x '


def test_the_expressions_of_the_packaged_model_are_read_unchanged(builtin):
    for text in iterate_expressions(SyntheticSettings(seed=5), 300):
        reading = builtin.read(text, unlearned_marks=UNLEARNED_MARKS)
        assert (reading.text, reading.unknown_words, reading.unread_text) == (text, (), "")


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("the Café, left", []),
        ("the cafe\u0301", []),
        ("the straße, left", ["straße,"]),
        ("🐈 the 猫! red", ["🐈", "猫!"]),
        ("红色的圆", ["红色的圆"]),
        ("??", ["??"]),
        ("¿ ¿", ["¿", "¿"]),
        ("the red circle!", []),
        ("the \ud83d circle", []),
    ],
)
def test_words_with_unknown_pieces_are_listed_as_they_were_written(builtin, text, unknown):
    assert list(builtin.read(text).unknown_words) == unknown


@pytest.mark.parametrize(
    "text", ["\ud83d", "a \udc80 b", "\x00", "\ud83d\ude00", "x" * 20_000, "\u2028", "e\u0301" * 200]
)
def test_any_text_has_tokens_or_is_empty(builtin, text):
    for tokenizer in (builtin, trained(*SENTENCES)):
        try:
            assert tokenizer.encode_batch([text])[0].shape[1] <= tokenizer.max_tokens
        except ExpressionError:
            assert not any(map(str.isalnum, text))
        if any(map(str.isalnum, text)):
            assert len(tokenizer.piece_roles([text])[0]) == len(tokenizer.encode(text))


@pytest.mark.parametrize("num_words", [1, 2, 3, 4, 20])
def test_the_truncated_end_starts_with_the_first_incompletely_read_word(num_words):
    tokenizer = trained(*SENTENCES, max_tokens=12)  # ten characters: "▁the▁cup▁t"
    text = " ".join(["the", "cup"] * 10)
    words = text.split()[:num_words]
    assert tokenizer.read(" ".join(words)).unread_text == " ".join(words[2:])


def test_answers_list_unknown_words_and_where_reading_stopped(refcli, scene):
    path, expression = scene
    asked = [expression, "the zebra", "红色的圆", f"{expression} café", " ".join([expression] * 40)]
    code, out, err = refcli("predict", path, *(part for text in asked for part in ("-e", text)))
    known, zebra, chinese, accented, long = map(json.loads, out.splitlines())
    assert code == 0
    assert not {"unknown_words", "unread_text"} & known.keys()
    assert zebra["unknown_words"] == ["zebra"]
    assert chinese["unknown_words"] == ["红色的圆"]
    assert accented["unknown_words"] == ["café"]
    assert asked[-1].endswith(long["unread_text"])
    no_word = next(line for line in err.splitlines() if "no word of 1 of 5 expressions" in line)
    some_words = next(line for line in err.splitlines() if "not know all words of 2 of 5 expressions" in line)
    assert "(unknown_words: 红色的圆)" in no_word
    assert "(unknown_words: zebra, café)" in some_words
    assert "read the end of 1 of 5 expressions" in err
    for line in out.splitlines():
        record = json.loads(line)
        answer = answer_from_json(record)
        assert list(answer.unknown_words) == record.get("unknown_words", [])
        assert answer.unread_text == record.get("unread_text", "")


@pytest.mark.parametrize(
    ("key", "value"), [("unknown_words", "zebra"), ("unread_text", ["x"]), ("unknown_words", None)]
)
def test_a_line_with_unread_text_of_another_type_is_malformed(refcli, scene, key, value):
    _, out, _ = refcli("predict", scene[0], "-e", "the zebra")
    with pytest.raises(DataError, match="malformed"):
        answer_from_json(json.loads(out) | {key: value})


def test_the_table_shows_unread_text_too(refcli, scene):
    _, out, _ = refcli("predict", scene[0], "-e", "the zebra", "-f", "table")
    assert "(unknown words: zebra)" in out


def test_evaluation_counts_unread_text(refcli, scene, tmp_path):
    path, expression = scene
    lines = [
        {"image": path.name, "expression": text, "box": [1, 2, 30, 40]} for text in (expression, "the zebra", "猫")
    ]
    (tmp_path / "own_val.jsonl").write_text("\n".join(map(json.dumps, lines)))
    refcli(
        *("prepare-data", "--from", tmp_path / "own_val.jsonl", "--name", "own"),
        *("--images", path.parent, "--out", tmp_path / "store"),
    )
    _, out, err = refcli("evaluate", "--data", tmp_path / "store", "--split", "own:val", "--json")
    warnings = " ".join(json.loads(out)["warnings"])
    assert "no word of 1 of 3 expressions" in warnings
    assert "not know all words of 1 of 3 expressions" in warnings
    assert "zebra" in err


def test_training_batches_are_tokenised_like_requests(builtin):
    class Kept:
        def __init__(self, tokenizer: Tokenizer) -> None:
            self.texts: list[str] = []
            self.plain = tokenizer.plain

        def encode_batch(self, texts: list[str]):
            self.texts += texts
            raise ExpressionError("enough")

    class Sample:
        expression = "the red “circle”!"

    kept = Kept(builtin)
    with pytest.raises(ExpressionError):
        Collate(kept)([Sample()])
    assert UNK not in builtin.encode(kept.texts[0])
