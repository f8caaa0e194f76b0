"""The recipe of predict: images are decoded once, expressions are tokenised once, drawings show what was read."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refcli.drawing.overlays import SMALLEST_DRAWING, resize_for_drawing
from refcli.inference import predictor as predictor_module
from refcli.inference.predictor import Predictor
from refcli.inference.requests import Request
from refcli.recipes.predict import Output, predict
from refcli.text.tokenizer import Tokenizer


@pytest.fixture
def images(tmp_path) -> list[Path]:
    paths = [tmp_path / f"{name}.png" for name in "ab"]
    for path, colour in zip(paths, ("red", "blue"), strict=True):
        Image.new("RGB", (60, 40), colour).save(path)
    return paths


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The names of the images that were decoded, as often as they were."""
    names: list[str] = []
    decode = predictor_module.open_source

    def open_source(source):
        names.append(Path(source).name)
        return decode(source)

    monkeypatch.setattr(predictor_module, "open_source", open_source)
    return names


def run(inputs, expressions, weights, out=None):
    answers = []
    summary = predict(
        list(map(str, inputs)),
        expressions,
        load=partial(Predictor, weights),
        out=None if out is None else Output(out),
        on_answer=answers.append,
    )
    return summary, answers


@pytest.mark.parametrize("with_drawings", [False, True])
def test_an_image_is_decoded_once_for_all_its_answers_and_drawings(
    images, decoded, random_weights, tmp_path, with_drawings
):
    out = tmp_path / "out" if with_drawings else None
    summary, answers = run([*images, tmp_path / "none.png"], ["it", "the cup"], random_weights, out)
    assert sorted(decoded) == ["a.png", "b.png", "none.png"]
    assert len(answers) == summary.num_answers == 6
    if out is not None:
        assert len(list((out / "overlays").iterdir())) == 6


def test_an_expression_is_tokenised_once(images, monkeypatch):
    texts = []
    encode = Tokenizer.encode

    def counted(tokenizer, expression):
        texts.append(expression)
        return encode(tokenizer, expression)

    predictor = Predictor("builtin", device="cpu", precision="fp32")
    monkeypatch.setattr(Tokenizer, "encode", counted)
    answers = predictor.predict(images[0], ["the red circle", "the zebra", "the red circle on the left " * 20])
    assert [bool(answer.unknown_words) for answer in answers] == [False, True, False]
    assert answers[2].unread_text
    assert len(texts) == len(answers)


def test_drawings_show_the_image_of_a_request_also_if_it_is_malformed(images, random_weights, tmp_path, decoded):
    lines = [{"image": str(images[0])}, {"image": str(images[1]), "expression": "it"}, {"image": "", "expression": "x"}]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, lines)))
    summary, answers = run([tmp_path / "r.jsonl"], [], random_weights, tmp_path / "out")
    assert [answer.error is None for answer in answers] == [False, True, False]
    assert (answers[0].width, answers[0].height) == (0, 0)
    assert len(summary.failures) == 2
    corners = []
    for path in sorted((tmp_path / "out/overlays").iterdir()):
        with Image.open(path) as drawing:
            corners.append(drawing.convert("RGB").getpixel((3, 3)))
    assert corners[0] == (255, 0, 0)
    assert corners[2] == (58, 58, 58)


def test_answers_arrive_with_their_requests_and_their_images(images, random_weights):
    requests = [Request(str(n), str(path), "it") for n, path in enumerate(images * 3)]
    answered = list(Predictor(random_weights, batch_size=2).answer_requests(iter(requests), keep_images=True))
    assert [one.request for one in answered] == requests
    assert [one.answer.id for one in answered] == [request.id for request in requests]
    assert all(max(one.drawable.shape) == SMALLEST_DRAWING for one in answered)
    assert [tuple(one.drawable[0, 0]) for one in answered] == [(255, 0, 0), (0, 0, 255)] * 3
    assert answered[0].drawable is answered[2].drawable


def test_an_image_in_the_size_of_a_drawing_is_drawn_as_it_is():
    pixels = np.zeros((400, SMALLEST_DRAWING, 3), np.uint8)
    assert resize_for_drawing(pixels) is pixels
    assert max(resize_for_drawing(pixels[:100, :100]).shape) == SMALLEST_DRAWING
