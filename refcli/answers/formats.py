"""The table of the formats of prediction files, and the declared notation of one file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from refcli.errors import UsageError
from refcli.tables import did_you_mean
from refcli.text.vlm_text import COORDINATES, INPUT_PIXELS, PIXELS, TEXT_FORMATS, TextFormat

REFCLI = "refcli"
"""The format of the program itself."""
InputSize: TypeAlias = tuple[int, int] | Literal["qwen2.5-vl"]
"""(width, height) of the model's input in pixels, or the name of a rule for it."""
INPUT_RULE: Literal["qwen2.5-vl"] = "qwen2.5-vl"
"""The rule of Qwen2-VL and Qwen2.5-VL: see `refcli.text.vlm_text.smart_resize`."""
_SIZE = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """A format of prediction files.

    Args:
        about: its description.
        example: a line of a file or, if the file is one JSON list, an entry.
        read: "module:function" of its `AnswerReader`; empty for the program's own format.
        coordinates: the space of its boxes, a name in `COORDINATES`.
        has_spaces: whether `--coordinates` may declare another space.
        has_own_ids: whether the ids are the benchmark's own, which are unique in a data set or a split of it, and not
            those of the store.
        lists_boxes: whether an entry is one box, so that a sample without an entry is answered "no target".
    """

    about: str
    example: str
    read: str
    coordinates: str = PIXELS
    has_spaces: bool = True
    has_own_ids: bool = True
    lists_boxes: bool = False


def _of_text(name: str, text: TextFormat) -> AnswerFormat:
    escaped = text.example.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return AnswerFormat(
        f"text of {text.models}",
        f'{{"id": "refcoco_unc/3/7", "text": "{escaped}"}}',
        "refcli.answers.text_lines:read_text_lines",
        text.coordinates,
        has_own_ids=False,
    )


_BENCHMARKS = "refcli.answers.benchmark_files"
_RESULT = '{"image_id": 7, "category_id": 1, "bbox": [10, 20, 50, 40], "score": 0.9}'
ANSWER_FORMATS: Mapping[str, AnswerFormat] = {
    REFCLI: AnswerFormat(
        "prediction lines of refcli",
        '{"schema": "refcli.prediction/1", "id": "refcoco_unc/3/7", ...}',
        "",
        has_spaces=False,
        has_own_ids=False,
    ),
    **{name: _of_text(name, text) for name, text in TEXT_FORMATS.items()},
    "coco-results": AnswerFormat(
        "COCO results; image_id is the id of the sample, as in MDETR's files of images with one caption each",
        _RESULT,
        f"{_BENCHMARKS}:read_results",
        has_spaces=False,
        lists_boxes=True,
    ),
    "grec": AnswerFormat(
        "COCO results for gRefCOCO (GREC), joined as coco-results",
        _RESULT,
        f"{_BENCHMARKS}:read_results",
        has_spaces=False,
        lists_boxes=True,
    ),
    "d-cube": AnswerFormat(
        "COCO results for D-cube; category_id is the id of the description",
        '{"image_id": 7, "category_id": 3, "bbox": [10, 20, 50, 40], "score": 0.9}',
        f"{_BENCHMARKS}:read_category_results",
        has_spaces=False,
        lists_boxes=True,
    ),
    "ref-l4": AnswerFormat(
        "Ref-L4's list",
        '{"id": 7, "pred_bbox": [10, 20, 60, 60], "format": "xyxy"}',
        f"{_BENCHMARKS}:read_ref_l4",
        has_spaces=False,
    ),
    "gseval": AnswerFormat(
        "GSEval's lines; the box may also be called box",
        '{"idx": 7, "predicted_box": [10, 20, 60, 60]}',
        f"{_BENCHMARKS}:read_gseval",
    ),
    "humanref": AnswerFormat(
        "HumanRef's lines; no box is a rejection, two numbers are a point",
        '{"id": 7, "extracted_predictions": [[10, 20, 60, 60]]}',
        f"{_BENCHMARKS}:read_humanref",
    ),
    "finecops": AnswerFormat(
        "FineCops-Ref's lines of text, with a score for each box",
        '{"image_id": 7, "text": "[100, 250, 600, 750]", "scores_prob_average": [0.9]}',
        f"{_BENCHMARKS}:read_finecops",
        "thousand",
    ),
    "finecops-npy": AnswerFormat(
        "FineCops-Ref's list of boxes and scores, a .npy file",
        '{"img_id": 7, "bboxes": [[10, 20, 60, 60]], "scores": [0.9]}',
        f"{_BENCHMARKS}:read_finecops_array",
    ),
}
"""Name of `--answers-format` -> the format."""


@dataclass(frozen=True)
class AnswerNotation:
    """The declared notation of a prediction file: its format, and the space and size of its numbers."""

    name: str = REFCLI
    """A row of `ANSWER_FORMATS`."""
    coordinates: str = PIXELS
    """A name in `COORDINATES`."""
    input_size: InputSize | None = None
    """Of the model's input, for lines that do not state it."""

    @classmethod
    def declare(
        cls, name: str = REFCLI, *, coordinates: str | None = None, input_size: str | None = None
    ) -> AnswerNotation:
        """The notation that options declare.

        Args:
            name: the format.
            coordinates: the space of the boxes; None: that of the format.
            input_size: WIDTHxHEIGHT in pixels, or the name of a rule.

        Raises:
            UsageError: there is no such format, space or size, or one has no effect on the format.
        """
        if name not in ANSWER_FORMATS:
            raise UsageError(
                f"there is no answer format called {name!r}",
                where="--answers-format",
                hint=did_you_mean(name, ANSWER_FORMATS),
            )
        row = ANSWER_FORMATS[name]
        if coordinates is not None:
            if coordinates not in COORDINATES:
                raise UsageError(
                    f"there is no coordinate space called {coordinates!r}",
                    where="--coordinates",
                    hint=did_you_mean(coordinates, COORDINATES),
                )
            if not row.has_spaces:
                raise UsageError(
                    f"this has no effect: boxes of {name} are in pixels of the image", where="--coordinates"
                )
        space = coordinates or row.coordinates
        if input_size is not None and space != INPUT_PIXELS:
            raise UsageError(
                f"this has no effect: boxes of {name} do not depend on the size of the model's input",
                where="--input-size",
                hint=f"--coordinates {INPUT_PIXELS} declares pixels of the input" if row.has_spaces else None,
            )
        return cls(name, space, None if input_size is None else _input_size(input_size))

    def __str__(self) -> str:
        """As a note: "qwen2.5-vl in input-pixels, 644x476"; empty for prediction lines."""
        if self.name == REFCLI:
            return ""
        size = "x".join(map(str, self.input_size)) if isinstance(self.input_size, tuple) else self.input_size
        return f"{self.name} in {self.coordinates}" + (f", {size}" if size else "")

    @property
    def format(self) -> AnswerFormat:
        """The row of the format."""
        return ANSWER_FORMATS[self.name]


def _input_size(text: str) -> InputSize:
    if text == INPUT_RULE:
        return INPUT_RULE
    sides = _SIZE.fullmatch(text)
    if sides is None:
        raise UsageError(
            f"{text!r} is no size", where="--input-size", hint=f"WIDTHxHEIGHT such as 644x476, or {INPUT_RULE}"
        )
    return int(sides[1]), int(sides[2])
