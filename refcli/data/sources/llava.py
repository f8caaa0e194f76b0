"""Training lines of vision-language models (LLaVA, ShareGPT): conversations with boxes in the text.

A record is `{"image", "conversations": [{"from": "human" | "gpt", "value"}, ...]}`, optionally with `width` and
`height`; an image is one name, or a list of one. The notation and the coordinate space of the boxes are declared, not
guessed. Expressions are found in one of two ways:

- With `prompts`, a human turn that matches a prompt is an expression, and the boxes of the next turn are its target:
  "Where is {expression}?" A prompt with `{box}` asks for a description instead: the next turn is the expression.
- Without, each tagged phrase of an answer is an expression, and the boxes behind it are its target:
  `<ref>the cup</ref><box>[[10, 20, 300, 400]]</box>`; also `<|ref|>`, `<|object_ref_start|>` and `<p>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import msgspec
from pydantic import field_validator

from refcli.config.schema import Settings
from refcli.data.sources.image_names import ImageOrigin, named_image
from refcli.data.sources.json_records import RowPlace, read_rows
from refcli.data.sources.known_keys import KnownKeys, excerpt
from refcli.data.sources.record import Problems, RawExpression, RawRecord, RawRegion, Source
from refcli.data.sources.rows import are_fractions, first_record_has, valid_side
from refcli.errors import DataError
from refcli.geometry.boxes import BoxXYXY
from refcli.text.vlm_text import PIXELS, TEXT_FORMATS, AnswerTextError, ImageSizes, parse_answer

_LARGEST = {"unit": 1, "unit-padded": 1, "thousand": 1000, "bins-999": 999, "bins-1024": 1024}
"""Space -> its largest number; pixels have none."""
_TOLERANCE = 0.01
"""Share of the largest number by which rounded boxes may leave the image."""
_HUMAN, _MODEL = frozenset({"human", "user"}), frozenset({"gpt", "assistant"})
_IMAGE_MARK = "<image>"
_SLOT = re.compile(r"\{(expression|box)\}")
_PHRASE_TEXT = "([^<]{1,1000})"
_PHRASE = re.compile(
    "|".join(
        f"{re.escape(start)}{_PHRASE_TEXT}{re.escape(end)}"
        for start, end in (
            ("<ref>", "</ref>"),
            ("<|ref|>", "<|/ref|>"),
            ("<|object_ref_start|>", "<|object_ref_end|>"),
            ("<p>", "</p>"),
        )
    )
)
_AS_WRITTEN = ImageSizes(1, 1)


class LlavaSettings(Settings):
    """Options of the reader of training lines."""

    coordinates: Literal["pixels", "unit", "unit-padded", "thousand", "bins-999", "bins-1024"]
    """The space of the numbers: pixels of the image; 0..1 of the image; 0..1 of the image padded to a square (as LLaVA
    1.5 and Shikra see it); 0..1000, 0..999 or 0..1024 of the image."""
    notation: str = "shikra"
    """The text format of the boxes: shikra is [x1, y1, x2, y2], qwen2-vl is (x1,y1),(x2,y2)."""
    prompts: tuple[str, ...] = ()
    """Human turns with `{expression}` or `{box}`, without <image>. Empty: tagged phrases of answers are read."""
    images: ImageOrigin = "auto"
    """Where the images come from. `auto`: COCO where a name starts with COCO_train2014_; `coco`: also where it is a
    number of twelve digits; `own`: the data set itself."""

    @field_validator("notation")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in TEXT_FORMATS:
            raise ValueError(f"{name!r} is none of {', '.join(TEXT_FORMATS)}")
        return name

    @field_validator("prompts")
    @classmethod
    def _have_one_slot(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        for prompt in prompts:
            if len(_SLOT.findall(prompt)) != 1:
                raise ValueError(f"{prompt!r} needs either {{expression}} or {{box}}, once")
        return prompts


class _Turn(msgspec.Struct):
    speaker: str = msgspec.field(name="from")
    value: str


class _Row(msgspec.Struct):
    conversations: list[_Turn]
    image: str | list[str] | None = None
    width: int | None = None
    height: int | None = None


_KEYS = KnownKeys(
    "line", frozenset(_Row.__struct_fields__), frozenset({"id", "model", "source", "dataset"}), has_corners=True
)
_Boxes = tuple[BoxXYXY, ...]
"""In the declared space."""


@dataclass(frozen=True)
class _Prompt:
    pattern: re.Pattern[str]
    asks_for_box: bool


def read_llava(
    files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
) -> Iterator[RawRecord]:
    """Yield one record per expression of a conversation; see `Reader`.

    Args:
        files: split -> file.
        settings: a `LlavaSettings`.
        dataset: prefix of the keys of images that are not COCO's.
        problems: collects `broken_line` or `broken_row` (several images, boxes of another space);
            `line_without_image`, `line_without_phrase`, `phrase_without_box`, `turn_without_box`, and
            `turn_without_prompt` (a human turn that matches none of the prompts).
    """
    assert isinstance(settings, LlavaSettings)
    prompts = [_compiled(prompt) for prompt in settings.prompts]

    def records(row: _Row, place: RowPlace) -> list[RawRecord]:
        names = [row.image] if isinstance(row.image, str) else row.image or []
        if not names:
            problems.add("line_without_image", place.where)
            return []
        if len(names) != 1:
            raise DataError(f"the line has {len(names)} images", where=place.where, hint="write one line per image")
        image = named_image(
            names[0],
            dataset=dataset,
            width=valid_side(row.width),
            height=valid_side(row.height),
            origin=settings.images,
        )
        if prompts:
            found = list(_prompted(row.conversations, prompts, settings, place.where, problems))
        else:
            found = list(_tagged(row.conversations, settings, place.where, problems))
        _check_space([box for _, boxes in found for box in boxes], settings.coordinates, place.where)
        return [
            RawRecord(
                split=place.split,
                image=image,
                expressions=(RawExpression(f"{place.number}/{number}", text),),
                regions=tuple(map(RawRegion, boxes)),
                where=place.where,
                coordinates=settings.coordinates,
            )
            for number, (text, boxes) in enumerate(found)
        ]

    num_records = 0
    for record in read_rows(files, _Row, _KEYS, records, problems):
        num_records += 1
        yield record
    if not num_records:
        raise DataError(
            "no line has an expression with a box",
            where=", ".join(map(str, files.values())),
            hint="name the human turns with --set prompts=['Where is {expression}?'], and the --set notation",
        )


def _compiled(prompt: str) -> _Prompt:
    before, slot, after = _SLOT.split(" ".join(prompt.split()))
    return _Prompt(
        re.compile(f"{re.escape(before)}(.+?){re.escape(after)}", re.IGNORECASE), asks_for_box=slot == "expression"
    )


def _prompted(
    turns: Sequence[_Turn], prompts: Sequence[_Prompt], settings: LlavaSettings, where: str, problems: Problems
) -> Iterator[tuple[str, _Boxes]]:
    """The expressions and boxes of the human turns that match a prompt, with the answers to them."""
    for asked, answered in pairwise(turns):
        if asked.speaker not in _HUMAN or answered.speaker not in _MODEL:
            continue
        question = " ".join(asked.value.replace(_IMAGE_MARK, " ").split())
        matches = ((prompt, prompt.pattern.fullmatch(question)) for prompt in prompts)
        prompt, match = next(((prompt, match) for prompt, match in matches if match), (None, None))
        if prompt is None or match is None:
            problems.add("turn_without_prompt", where, excerpt(question))
            continue
        text, box_text = (match[1], answered.value) if prompt.asks_for_box else (answered.value, match[1])
        try:
            boxes = _boxes(box_text, settings)
        except AnswerTextError as error:
            problems.add("turn_without_box", where, f"{excerpt(box_text)}: {error}")
            continue
        if not boxes and not prompt.asks_for_box:
            problems.add("turn_without_box", where, excerpt(box_text))
            continue
        yield _untagged(text), boxes


def _untagged(text: str) -> str:
    """The text without the tags around it, if it is a tagged phrase."""
    phrase = _PHRASE.fullmatch(text.strip())
    return _text_of(phrase) if phrase else text


def _text_of(phrase: re.Match[str]) -> str:
    return next(filter(None, phrase.groups()), "").strip()


def _tagged(
    turns: Sequence[_Turn], settings: LlavaSettings, where: str, problems: Problems
) -> Iterator[tuple[str, _Boxes]]:
    """The tagged phrases of answers, each with all boxes that follow one of its mentions in the same answer."""
    is_empty = True
    for turn in turns:
        if turn.speaker not in _MODEL:
            continue
        phrases = list(_PHRASE.finditer(turn.value))
        merged: dict[str, _Boxes] = {}
        for index, phrase in enumerate(phrases, 1):
            end = phrases[index].start() if index < len(phrases) else len(turn.value)
            text = _text_of(phrase)
            try:
                boxes = _boxes(turn.value[phrase.end() : end], settings)
            except AnswerTextError:
                boxes = ()
            if text and boxes:
                merged[text] = tuple(dict.fromkeys((*merged.get(text, ()), *boxes)))
            else:
                problems.add("phrase_without_box", where, text)
        is_empty &= not merged
        yield from merged.items()
    if is_empty:
        problems.add("line_without_phrase", where)


def _boxes(text: str, settings: LlavaSettings) -> _Boxes:
    """The boxes in a text, in the declared space; none if the text states that there is no target.

    Raises:
        AnswerTextError: the text has neither a box nor such a statement, or it has a point.
    """
    boxes = parse_answer(text, settings.notation, _AS_WRITTEN, coordinates=PIXELS)
    if any((x1, y1) == (x2, y2) for x1, y1, x2, y2 in boxes):
        raise AnswerTextError("a point instead of a box")
    return boxes


def _check_space(boxes: Sequence[BoxXYXY], space: str, where: str) -> None:
    largest = _LARGEST.get(space)
    if largest != 1 and are_fractions(boxes):
        raise DataError(
            f"its boxes are in fractions, but coordinates={space} is declared", where=where, hint="declare unit"
        )
    if largest is None:
        return
    for number in (number for box in boxes for number in box):
        if not -_TOLERANCE * largest <= number <= (1 + _TOLERANCE) * largest:
            raise DataError(f"{number:g} is not within 0 to {largest}, as coordinates={space} demands", where=where)


def sniff_llava(path: Path) -> bool:
    """Whether a file starts with a conversation."""
    return first_record_has(path, b"conversations", b"from", b"value")


SOURCE = Source(
    description="LLaVA or ShareGPT: conversations with boxes in the text, in a declared coordinate space",
    read=read_llava,
    settings=LlavaSettings,
    files={"*": ()},
    sniff=sniff_llava,
)
