"""Boxes in the text answers of vision-language models: one parser per format, one declared coordinate space."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Numbers: TypeAlias = tuple[float, ...]
"""Four numbers of a box, or two of a point, as the text has them."""
Box: TypeAlias = tuple[float, float, float, float]
Order: TypeAlias = Literal["xyxy", "yxyx"]


class AnswerTextError(ValueError):
    """The text holds neither a box in the declared format nor a statement that there is no target."""


@dataclass(frozen=True, slots=True)
class ImageSizes:
    """The sizes of an image file and of the model's input, which determine the pixels of a box.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        input_width: of the resized image that the model received, in pixels; None: unknown.
        input_height: as `input_width`.
    """

    width: float
    height: float
    input_width: float | None = None
    input_height: float | None = None


@dataclass(frozen=True, slots=True)
class TextFormat:
    """The notation for boxes of one family of models.

    Args:
        models: the models that write it.
        parse: text -> numbers of every box, in the order of the text; no box where the text is a refusal.
        coordinates: the space that the numbers are in unless the user declares another one (a key of `COORDINATES`).
        order: which axis comes first.
        example: an answer in this format.
    """

    models: str
    parse: Callable[[str], list[Numbers]]
    coordinates: str
    order: Order
    example: str


_ENDS = r"(?= \s* (?: [.!,;:] | $ | (?:in|on|within|anywhere|here) \b ))"
REFUSAL = re.compile(
    rf"""\b(?: no \s+ (?:such\s+)? (?:target|object|match|box|bounding\s+box|region|one|thing|person|item)s? \b
          | (?:is|are|was|were) \s* (?:not|n't) \s+ (?:\w+\s+)? (?:present|visible|found|shown) \b {_ENDS}
          | (?:is|are) \s* (?:not|n't) \s+ in \s+ the \s+ (?:image|photo|pic\w*) \b
          | (?:image|photo|pic\w*|scene) \s+ (?:does|do) \s* (?:not|n't) \s+ (?:contain|have|include|show|depict) \b
          | (?:does|do) \s* (?:not|n't) \s+ (?:exist|appear|match) \b {_ENDS}
          | (?:can \s* not|can't|could \s* (?:not|n't)) \s+ (?:be\s+)?
            (?:find|found|locate|located|see|detect|detected|identify) \b
          | there \s+ (?:is|are) \s+ no \b
          | (?:unable|impossible) \s+ to \s+ (?:find|locate|identify) \b
          | not \s+ (?:present|visible|found|applicable) \b {_ENDS} )
        | ^ \W* none (?: \s* [.!]? \s* $ | \s+ (?:of|found|present|visible) \b )
        | > \s* none \s* <""",
    re.IGNORECASE | re.VERBOSE,
)
"""Prose without a box that matches this states that there is no target."""
ECHO = re.compile(
    r"<ref>.*?(?:</ref>|$)|<p>.*?(?:</p>|$)|<\|ref\|>.*?(?:<\|/ref\|>|$)|"
    r'<\|object_ref_start\|>.*?(?:<\|object_ref_end\|>|$)|"[^"]*(?:"|$)',
    re.DOTALL,
)
"""The expression or a label within an answer, which may say what is not there."""
CUT_OFF_BOX = re.compile(r"[\[(<]\s*[-+.]?\d")
"""The start of a box."""
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
LIST_OF_NUMBERS = re.compile(rf"[\[(]\s*({NUMBER}(?:\s*,\s*{NUMBER}){{1,3}})\s*[\])]")
"""`[a, b]` to `[a, b, c, d]`, in square or round brackets."""
KEYED = re.compile(
    rf'["\'](?:bbox_2d|bbox|box_2d|box|coordinates|bboxes|boxes|point_2d|point)["\']\s*:\s*'
    rf"(?:(null|None|\[\s*\])|((?:\[\s*)?\[\s*{NUMBER}[^\]]*\](?:\s*,\s*\[[^\]]*\])*))"
)
"""A box under one of the keys that models write, or its absence (null, an empty list)."""
EMPTY_JSON = re.compile(r"(?:```(?:json)?\s*)?(?:\[\s*(?:\[\s*\]\s*)?\]|\{\s*\}|null|None)(?:\s*```)?", re.IGNORECASE)
PAIR_OF_CORNERS = re.compile(rf"\(\s*({NUMBER})\s*,\s*({NUMBER})\s*\)\s*,\s*\(\s*({NUMBER})\s*,\s*({NUMBER})\s*\)")
DETECTIONS = re.compile(r"<\|det\|>(.*?)(?:<\|/det\|>|$)", re.DOTALL)
BOX_TAGS = re.compile(r"<(?:box|bbox)>(.*?)(?:</(?:box|bbox)>|$)", re.DOTALL)
REX_BOXES = re.compile(r"<\|box_start\|>(.*?)(?:<\|box_end\|>|$)", re.DOTALL)
REX_BINS = re.compile(r"(?:<\d+>){2,4}")
BIN = re.compile(r"<(?:loc_?)?(\d+)>")
LOC_RUNS = re.compile(r"(?:<loc_?\d+>)+")
PATCH_PAIR = re.compile(r"<patch_index_(\d+)>\s*<patch_index_(\d+)>")
MOONDREAM = re.compile(
    rf'"x_min"\s*:\s*({NUMBER})\s*,\s*"y_min"\s*:\s*({NUMBER})\s*,\s*"x_max"\s*:\s*({NUMBER})\s*,\s*"y_max"\s*:\s*({NUMBER})'
)
KOSMOS_GRID = 32
"""Kosmos-2 numbers the cells of a 32 x 32 grid, row by row."""


def parse_answer(
    text: str, text_format: str, sizes: ImageSizes, *, coordinates: str | None = None, order: Order | None = None
) -> tuple[Box, ...]:
    """The boxes that a text answer states, in pixels of the image.

    Reasoning (`<think>...</think>`) is not part of the answer; of several `<answer>...</answer>` the last one counts.
    The text is read in the one format and the one coordinate space that are declared: no other reading is tried,
    however unlikely the result looks.

    Args:
        text: the model's answer.
        text_format: a name in `TEXT_FORMATS`.
        sizes: of the image, and of the model's input if the space needs it.
        coordinates: a name in `COORDINATES`; None: that of the format.
        order: None: that of the format.

    Returns:
        xyxy boxes, not clipped to the image, in the order of the text; a point is a box without area. Empty: the text
        states that there is no target.

    Raises:
        AnswerTextError: the text holds neither a box nor a refusal.
        KeyError: there is no such format or space.
    """
    declared = TEXT_FORMATS[text_format]
    boxes = stated_boxes(text, declared, order=order)
    return boxes_in_image(boxes, coordinates or declared.coordinates, sizes)


def stated_boxes(text: str, declared: TextFormat, *, order: Order | None = None) -> tuple[Box, ...]:
    """The boxes that a text answer states, as `parse_answer`, but xyxy in the numbers of the text.

    Raises:
        AnswerTextError: the text holds neither a box nor a refusal.
    """
    is_y_first = (order or declared.order) == "yxyx"
    boxes = []
    for numbers in declared.parse(_final_answer(text)):
        first, second = (numbers[:2], numbers[-2:]) if len(numbers) == 4 else (numbers, numbers)
        (x1, y1), (x2, y2) = (first[::-1], second[::-1]) if is_y_first else (first, second)
        boxes.append((x1, y1, x2, y2))
    return tuple(boxes)


def boxes_in_image(boxes_xyxy: Iterable[Box], coordinates: str, sizes: ImageSizes) -> tuple[Box, ...]:
    """Boxes of a space (a name in `COORDINATES`) in pixels of the image.

    Raises:
        AnswerTextError: the size of the model's input is needed and unknown.
    """
    to_pixels = COORDINATES[coordinates](sizes)
    return tuple((*to_pixels(x1, y1), *to_pixels(x2, y2)) for x1, y1, x2, y2 in boxes_xyxy)


def _final_answer(text: str) -> str:
    if "<" not in text:
        return text
    _, thought, rest = text.rpartition("</think>")
    if thought:
        text = rest
    elif "<think>" in text:
        return ""  # cut off before the answer
    start = text.rfind("<answer>")
    return text if start < 0 else text[start + len("<answer>") :].partition("</answer>")[0]


def _boxes_or_refusal(boxes: list[Numbers], text: str) -> list[Numbers]:
    if boxes:
        return boxes
    stripped = text.strip()
    if EMPTY_JSON.fullmatch(stripped):
        return []
    prose = ECHO.sub(" ", stripped.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    if not CUT_OFF_BOX.search(prose) and REFUSAL.search(prose):
        return []
    raise AnswerTextError("no box" if stripped else "an empty answer")


def _lists_in(text: str) -> list[Numbers]:
    """Every bracketed list of two or four numbers."""
    lists = (tuple(map(float, found.split(","))) for found in LIST_OF_NUMBERS.findall(text))
    return [numbers for numbers in lists if len(numbers) != 3]


def _json_boxes(text: str) -> list[Numbers]:
    """Boxes under a known key, also in JSON that was cut off; without such keys, bare lists of numbers."""
    keyed = KEYED.findall(text)
    if keyed:
        boxes = [box for _, value in keyed for box in _lists_in(value)]
        if not boxes and not any(absent for absent, _ in keyed):
            raise AnswerTextError("a box without four numbers")
        return boxes
    return _boxes_or_refusal([box for box in _lists_in(text) if len(box) == 4], text)


def _list_boxes(text: str) -> list[Numbers]:
    text = text.replace(";", "],[")  # between CogVLM's boxes
    return _boxes_or_refusal([box for box in _lists_in(text) if len(box) == 4], text)


def _corner_pairs(text: str) -> list[Numbers]:
    return _boxes_or_refusal([tuple(map(float, corners)) for corners in PAIR_OF_CORNERS.findall(text)], text)


def _boxes_within(tags: re.Pattern[str]) -> Callable[[str], list[Numbers]]:
    def parse(text: str) -> list[Numbers]:
        return _boxes_or_refusal([box for part in tags.findall(text) for box in _lists_in(part)], text)

    return parse


def _rex_boxes(text: str) -> list[Numbers]:
    runs = (run for part in REX_BOXES.findall(text) for run in REX_BINS.findall(part))
    boxes = [tuple(map(float, BIN.findall(run))) for run in runs]
    return _boxes_or_refusal([box for box in boxes if len(box) != 3], text)


def _location_tokens(text: str) -> list[Numbers]:
    """Boxes of four location tokens each; the rest of a run of tokens is ignored."""
    boxes: list[Numbers] = []
    for run in LOC_RUNS.findall(text):
        bins = [float(number) for number in BIN.findall(run)]
        boxes += [tuple(bins[start : start + 4]) for start in range(0, len(bins) - 3, 4)]
    return _boxes_or_refusal(boxes, text)


def _florence_boxes(text: str) -> list[Numbers]:
    """Location tokens stand for the middles of 1,000 bins."""
    return [tuple((number + 0.5) / 1000 for number in box) for box in _location_tokens(text)]


def _kosmos_boxes(text: str) -> list[Numbers]:
    boxes: list[Numbers] = [_kosmos_box(int(first), int(last)) for first, last in PATCH_PAIR.findall(text)]
    if not boxes:
        boxes = [box for box in _lists_in(text) if len(box) == 4]
    return _boxes_or_refusal(boxes, text)


def _kosmos_box(first: int, last: int) -> Box:
    """The box between two cells: their middles, or whole cells where they share a row or a column."""
    (y1, x1), (y2, x2) = divmod(first, KOSMOS_GRID), divmod(last, KOSMOS_GRID)
    start, end = (0.0, 1.0) if x1 == x2 or y1 == y2 else (0.5, 0.5)
    return (
        (x1 + start) / KOSMOS_GRID,
        (y1 + start) / KOSMOS_GRID,
        (x2 + end) / KOSMOS_GRID,
        (y2 + end) / KOSMOS_GRID,
    )


def _moondream_boxes(text: str) -> list[Numbers]:
    boxes: list[Numbers] = [tuple(map(float, sides)) for sides in MOONDREAM.findall(text)]
    if not boxes and re.search(r'"objects"\s*:\s*\[\s*\]', text):
        return []
    return _boxes_or_refusal(boxes, text)


Placing: TypeAlias = Callable[[float, float], tuple[float, float]]
"""(x, y) as written -> (x, y) in pixels of the image."""


def _of_range(largest: float) -> Callable[[ImageSizes], Placing]:
    def placing(sizes: ImageSizes) -> Placing:
        width, height = sizes.width / largest, sizes.height / largest
        return lambda x, y: (x * width, y * height)

    return placing


def _pixels(sizes: ImageSizes) -> Placing:
    return lambda x, y: (x, y)


def _input_pixels(sizes: ImageSizes) -> Placing:
    if not sizes.input_width or not sizes.input_height:
        raise AnswerTextError("the size of the model's input is unknown")
    across, down = sizes.width / sizes.input_width, sizes.height / sizes.input_height
    return lambda x, y: (x * across, y * down)


def _padded_square(sizes: ImageSizes) -> Placing:
    side = max(sizes.width, sizes.height)
    left, top = (side - sizes.width) / 2, (side - sizes.height) / 2
    return lambda x, y: (x * side - left, y * side - top)


PIXELS = "pixels"
COORDINATES: Mapping[str, Callable[[ImageSizes], Placing]] = {
    PIXELS: _pixels,
    "input-pixels": _input_pixels,
    "unit": _of_range(1),
    "unit-padded": _padded_square,
    "thousand": _of_range(1000),
    "bins-999": _of_range(999),
    "bins-1024": _of_range(1024),
}
"""The spaces that models write boxes in: pixels of the image, pixels of the resized input, 0..1 of the image, 0..1 of
the image padded to a square, 0..1000, 0..999 and 0..1024 of the image."""
LARGEST_NUMBER: Mapping[str, float] = {
    "unit": 1,
    "unit-padded": 1,
    "thousand": 1000,
    "bins-999": 999,
    "bins-1024": 1024,
}
"""The largest number of each space that does not depend on the size of the image."""
INPUT_PIXELS = "input-pixels"
"""The space that needs the size of the model's input."""

TEXT_FORMATS: Mapping[str, TextFormat] = {
    "qwen3-vl": TextFormat(
        "Qwen3-VL, Qwen3.5",
        _json_boxes,
        "thousand",
        "xyxy",
        '```json\n[{"bbox_2d": [10, 20, 300, 400], "label": "cup"}]\n```',
    ),
    "qwen2.5-vl": TextFormat(
        "Qwen2.5-VL", _json_boxes, "input-pixels", "xyxy", '[{"bbox_2d": [10, 20, 300, 400], "label": "cup"}]'
    ),
    "qwen2-vl": TextFormat("Qwen2-VL", _corner_pairs, "thousand", "xyxy", "<|box_start|>(10,20),(300,400)<|box_end|>"),
    "qwen-vl": TextFormat("Qwen-VL", _corner_pairs, "thousand", "xyxy", "<ref>cup</ref><box>(10,20),(300,400)</box>"),
    "internvl": TextFormat(
        "InternVL", _boxes_within(BOX_TAGS), "thousand", "xyxy", "<ref>cup</ref><box>[[10, 20, 300, 400]]</box>"
    ),
    "deepseek-vl2": TextFormat(
        "DeepSeek-VL2",
        _boxes_within(DETECTIONS),
        "bins-999",
        "xyxy",
        "<|ref|>cup<|/ref|><|det|>[[10, 20, 300, 400]]<|/det|>",
    ),
    "cogvlm": TextFormat("CogVLM, CogCoM", _list_boxes, "thousand", "xyxy", "[[010,020,300,400]]"),
    "ferret": TextFormat("Ferret", _list_boxes, "thousand", "xyxy", "The cup [10, 20, 300, 400]."),
    "shikra": TextFormat("Shikra, LLaVA", _list_boxes, "unit-padded", "xyxy", "[0.010, 0.020, 0.300, 0.400]"),
    "kosmos-2": TextFormat("Kosmos-2", _kosmos_boxes, "unit", "xyxy", "<patch_index_0044><patch_index_0863>"),
    "paligemma": TextFormat(
        "PaliGemma", _location_tokens, "bins-1024", "yxyx", "<loc0020><loc0010><loc0400><loc0300> cup"
    ),
    "florence-2": TextFormat(
        "Florence-2, the tokens", _florence_boxes, "unit", "xyxy", "cup<loc_10><loc_20><loc_300><loc_400>"
    ),
    "florence-2-dict": TextFormat(
        "Florence-2, the dictionary of its processor",
        _json_boxes,
        "pixels",
        "xyxy",
        '{"<OPEN_VOCABULARY_DETECTION>": {"bboxes": [[10, 20, 60, 70]], "labels": ["cup"]}}',
    ),
    "gemini": TextFormat(
        "Gemini 2", _json_boxes, "thousand", "yxyx", '[{"box_2d": [20, 10, 400, 300], "label": "cup"}]'
    ),
    "moondream": TextFormat(
        "Moondream",
        _moondream_boxes,
        "unit",
        "xyxy",
        '{"objects": [{"x_min": 0.1, "y_min": 0.2, "x_max": 0.3, "y_max": 0.4}]}',
    ),
    "rex-omni": TextFormat(
        "Rex-Omni",
        _rex_boxes,
        "bins-999",
        "xyxy",
        "<|object_ref_start|>cup<|object_ref_end|><|box_start|><10><20><300><400><|box_end|>",
    ),
    "xiaomi-lens": TextFormat(
        "Xiaomi Lens",
        _boxes_within(BOX_TAGS),
        "thousand",
        "xyxy",
        "<bbox>[10, 20, 300, 400]</bbox><mask><|mask|></mask>",
    ),
    "vlm-r1": TextFormat(
        "VLM-R1",
        _json_boxes,
        "input-pixels",
        "xyxy",
        '<think>...</think><answer>{"bbox_2d": [10, 20, 300, 400]}</answer>',
    ),
}
"""The text formats by name; each has the coordinate space that its models use."""


def smart_resize(
    width: int, height: int, *, factor: int = 28, least: int = 4 * 28 * 28, most: int = 16384 * 28 * 28
) -> tuple[int, int]:
    """The input size of Qwen2-VL and Qwen2.5-VL for an image: both sides multiples of `factor`, the area within bounds.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        factor: divisor of both sides.
        least: minimum number of pixels of the input.
        most: maximum number of pixels of the input.

    Returns:
        (width, height) in pixels.
    """
    wide, high = (max(factor, round(side / factor) * factor) for side in (width, height))
    if wide * high > most:
        shrink = (width * height / most) ** 0.5
        return tuple(max(factor, int(side / shrink // factor) * factor) for side in (width, height))  # type: ignore[return-value]
    if wide * high < least:
        grow = (least / (width * height)) ** 0.5
        return tuple(-int(-side * grow // factor) * factor for side in (width, height))  # type: ignore[return-value]
    return wide, high
