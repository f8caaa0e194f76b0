"""Expressions in any script are readable in drawings, or the drawing states where to look them up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, ImageDraw

from refcli.contracts.prediction import Answer
from refcli.drawing import lettering
from refcli.drawing.contact_sheet import contact_sheet
from refcli.drawing.lettering import font_for, readable
from refcli.drawing.overlays import draw_answer

NO_CHARACTER = "\uffff"


def drawn(text: str, font) -> bytes:
    canvas = Image.new("L", (600, 60), 255)
    ImageDraw.Draw(canvas).text((10, 10), text, font=font, fill=0)
    return canvas.tobytes()


@pytest.fixture
def bare_system(monkeypatch):
    """Only the fonts that come with refcli and its dependencies."""
    monkeypatch.setattr(lettering, "font_folders", tuple)


@pytest.mark.parametrize(
    "text",
    [
        "é",
        "café crème",
        "Größe übrig",
        "señor niño",
        "Çeşme ığdır",
        "łódź Žižka",
        "½ €5",
        "“so” – that’s …",
        "красный",
        "κόκκινο",
        "קפה",
        "Việt Nam",
    ],
)
def test_letters_beyond_ascii_are_drawn_on_a_bare_system(bare_system, text):
    font = font_for(text, 20)
    assert readable(text, "no") == text
    for letter in set(text) - {" "}:
        assert drawn(letter, font) != drawn(NO_CHARACTER, font), letter


def test_ascii_keeps_the_font_that_it_had():
    assert drawn("the red circle", font_for("the red circle", 20)) == drawn("the red circle", lettering.font_of(20))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("the 🐈 left", "the (cat) left"),
        ("ひらがな", "hiragana"),
        ("강아지", "gangaji"),
        ("e\u0301 a\u200bb\x1b[2J\tc\ud83d", "é ab[2J c"),
        ("the ｒｅｄ cup", "the red cup"),
        ("猫", "see line 3"),
        ("cat 猫", "see line 3"),
        ("", ""),
    ],
)
def test_letters_without_a_font_are_spelled_out_or_looked_up(bare_system, text, shown):
    assert readable(text, "see line 3") == shown


def write_font(path: Path, letter: str) -> None:
    """A font in which the letter is a square, and everything else a smaller one."""
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", "letter"])
    builder.setupCharacterMap({ord(letter): "letter"})
    glyphs = {}
    for name, side in ((".notdef", 300), ("letter", 700)):
        pen = TTGlyphPen(None)
        pen.moveTo((0, 0))
        for corner in ((0, side), (side, side), (side, 0)):
            pen.lineTo(corner)
        pen.closePath()
        glyphs[name] = pen.glyph()
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (800, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Square", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


def test_a_system_font_with_the_letters_is_used(monkeypatch, tmp_path):
    monkeypatch.setattr(lettering, "font_folders", lambda: (tmp_path, tmp_path / "missing"))
    (tmp_path / "below").mkdir()
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    write_font(tmp_path / "below/Square-Regular.ttf", "猫")
    assert readable("猫", "see line 3") == "猫"
    assert font_for("猫", 20).getname() == ("Square", "Regular")
    assert readable("左", "see line 3") == "see line 3"


def caption(expression: str, **options) -> np.ndarray:
    answer = Answer("7", "a.jpg", expression, 640, 320, (), True, 0.9, "w")
    return np.asarray(draw_answer(np.zeros((320, 640, 3), np.uint8), answer, **options))[320:]


def test_the_caption_of_a_drawing_shows_what_can_be_read(bare_system):
    assert not np.array_equal(caption("café"), caption("cafè"))
    assert np.array_equal(caption("ひらがな"), caption("hiragana"))
    looked_up = "[no installed font has these letters: see line 3]"
    assert np.array_equal(caption("猫", record="line 3"), caption(looked_up))
    assert np.array_equal(caption("猫"), caption(looked_up.replace("line 3", "7")))


def test_the_title_of_a_contact_sheet_shows_what_can_be_read():
    def sheet(title: str) -> bytes:
        return contact_sheet([Image.new("RGB", (40, 30))], title=title).tobytes()

    assert sheet("données") != sheet("donn\u00e8es")


def test_every_line_of_predictions_is_drawn(refcli, tmp_path, bare_system):
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    options = [part for text in ("größe", "左の猫", "🐈", "\u202e\u200b") for part in ("-e", text)]
    code, out, _ = refcli("predict", tmp_path / "a.png", *options, "--out", tmp_path / "out")
    assert code == 0
    assert len(out.splitlines()) == len(list((tmp_path / "out/overlays").iterdir())) == 4
    assert json.loads(out.splitlines()[1])["expression"] == "左の猫"
