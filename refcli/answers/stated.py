"""Answers as other systems state them: boxes in a declared coordinate space, joined to an example by a key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from refcli.answers.formats import INPUT_RULE, AnswerNotation
from refcli.contracts.example import RLE, Example
from refcli.contracts.prediction import Answer, Target
from refcli.data.sources.known_keys import KeyLog
from refcli.data.sources.record import Problems
from refcli.errors import DataError
from refcli.text.vlm_text import INPUT_PIXELS, PIXELS, AnswerTextError, Box, ImageSizes, boxes_in_image, smart_resize

NOT_A_PREDICTION = "not a prediction"
"""The kind of rejected lines that state no answer."""


@dataclass(frozen=True, slots=True)
class StatedAnswer:
    """One answer of a file; boxes are xyxy in the declared space, a point is a box without area.

    Args:
        number: of the line or entry in the file, from 1.
        key: identifies the example.
        num_bytes: size of the answer in the file.
        boxes: none for "no target".
        scores: of the boxes; None: the file states none.
        masks: of the boxes; None: the file states none. A box of a mask without one is the tight box of the mask.
        boxes_from_masks: which boxes are tight boxes of their masks; None: none of them.
        failure: why the text of the answer could not be parsed.
        error: why there is no answer, as its system states.
        sizes: of the image and of the model's input, as the line states them; 0: unknown.
    """

    number: int
    key: str
    num_bytes: int
    boxes: tuple[Box, ...] = ()
    scores: tuple[float, ...] | None = None
    masks: tuple[RLE | None, ...] | None = None
    boxes_from_masks: tuple[bool, ...] | None = None
    failure: str | None = None
    error: str | None = None
    sizes: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass
class AnswerReading:
    """One file while it is read.

    Args:
        path: the file.
        notation: its declared notation.
        reject: called with (kind, line, reason) for each line that cannot be used.
    """

    path: Path
    notation: AnswerNotation
    reject: Callable[[str, int, str], None]
    problems: Problems = field(default_factory=Problems)
    """Unknown keys."""
    notes: list[str] = field(default_factory=list)
    """Notes for the user about the whole file."""

    def __post_init__(self) -> None:
        self.keys = KeyLog(self.path.name, self.problems)

    def finish(self) -> tuple[str, ...]:
        """All notes, after the last answer."""
        self.keys.finish()
        unused = [place for places in self.problems.places.values() for place in places]
        return (*self.notes, *(f"not read: {place}" for place in unused))


AnswerReader: TypeAlias = Callable[[AnswerReading], Iterator[StatedAnswer]]


def answer_of(stated: StatedAnswer, example: Example, notation: AnswerNotation) -> Answer:
    """The answer to an example, in pixels of its image; boxes without a score have score 1.

    Args:
        stated: the answer in the file.
        example: the example that its key names.
        notation: the declared notation of the file.

    Raises:
        DataError: the image has another size than the data set states, a mask another size than the image, or a size
            that the space needs is unknown.
    """
    width, height, *_ = stated.sizes
    if width and height and example.width and example.height and (width, height) != (example.width, example.height):
        raise DataError(f"the image is {width} x {height}, but {example.width} x {example.height} in the data")
    if not (width and height):
        width, height = example.width, example.height
    boxes = stated.boxes
    if boxes and notation.coordinates != PIXELS:
        boxes = _in_pixels(stated, width, height, notation)
    masks = stated.masks or (None,) * len(boxes)
    for mask in masks:
        if mask is not None and width and height and tuple(mask.size) != (height, width):
            raise DataError(f"a mask is {mask.size[1]} x {mask.size[0]}, but the image {width} x {height}")
    scores = stated.scores or (1.0,) * len(boxes)
    from_masks = stated.boxes_from_masks or (False,) * len(boxes)
    return Answer(
        id=example.id,
        image=example.image,
        expression=example.expression,
        width=width,
        height=height,
        targets=tuple(map(Target, boxes, scores, masks, from_masks)),
        no_target=not boxes and stated.failure is None and stated.error is None,
        no_target_score=None,
        weights=notation.name,
        error=stated.failure if stated.error is None else stated.error,
        parse_failure=stated.failure is not None and stated.error is None,
    )


def _in_pixels(stated: StatedAnswer, width: int, height: int, notation: AnswerNotation) -> tuple[Box, ...]:
    if not (width and height):
        raise DataError("the size of the image is unknown, but these coordinates need it")
    sizes = ImageSizes(width, height, *_input_sides(stated, width, height, notation))
    try:
        return boxes_in_image(stated.boxes, notation.coordinates, sizes)
    except AnswerTextError as error:
        raise DataError(f"{error}: give input_width and input_height in the line, or --input-size") from error


def _input_sides(stated: StatedAnswer, width: int, height: int, notation: AnswerNotation) -> tuple[int, int]:
    """(width, height) of the model's input: as the line states, or else by the size or rule for the file; 0: unknown.

    The rule has the limits that are the defaults of the model's processor.
    """
    *_, input_width, input_height = stated.sizes
    if (input_width and input_height) or notation.input_size is None:
        return input_width, input_height
    return smart_resize(width, height) if notation.input_size == INPUT_RULE else notation.input_size


def extent_of(stated: StatedAnswer, example: Example, notation: AnswerNotation) -> tuple[int, int]:
    """(width, height) of what the boxes are in pixels of, the image or the model's input; 0: unknown."""
    width, height = stated.sizes[:2] if all(stated.sizes[:2]) else (example.width, example.height)
    if notation.coordinates == INPUT_PIXELS and width and height:
        return _input_sides(stated, width, height, notation)
    return width, height
