"""The output of a head (Prediction, model frame) and of the program (Answer, image pixels)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from refcli.contracts.example import RLE, Example
from refcli.exports import imported

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from jaxtyping import Bool, Float
    from PIL.Image import Image
    from torch import Tensor

    ImageInput: TypeAlias = str | Path | bytes | np.ndarray | Image

PREDICTION_SCHEMA = "refcli.prediction/1"
VIEWS = {
    "masks": "refcli.inference.notebook:answer_masks",
    "draw": "refcli.inference.notebook:answer_drawing",
    "to_supervision": "refcli.inference.notebook:answer_detections",
    "png": "refcli.inference.notebook:answer_png",
    "html": "refcli.inference.notebook:answer_html",
}
"""View of an answer -> the function of a higher layer that makes it, imported on first use."""
SCORE_THRESHOLD = 0.7
"""Lowest score of the boxes that GREC counts (the published gRefCOCO evaluator)."""
NoTargetSource: TypeAlias = Literal["existence", "mask", "min_score"]
"""The reason for "no target": the system's existence score, an empty mask, or no target with the requested score."""


@dataclass(frozen=True)
class Prediction:
    """A head's output for a batch, in the model frame.

    `boxes_xyxy` are pixels of the model frame. `mask_logits` are foreground where > 0, at any resolution that
    covers the whole model frame. A head without an existence output leaves `existence` None; a head without a
    mask leaves `mask_logits` None; a head without a box leaves `boxes_xyxy` None (the box is then the mask's).
    """

    boxes_xyxy: Float[Tensor, "batch targets 4"] | None
    scores: Float[Tensor, "batch targets"]
    """Confidence of each target in 0..1."""
    mask_logits: Float[Tensor, "batch targets mask_height mask_width"] | None
    existence: Float[Tensor, " batch"] | None
    """Probability that the expression refers to anything at all."""
    existence_threshold: float = 0.5
    """Below this probability the answer is "no target"."""
    score_threshold: float = 0.0
    """Targets with a lower score are proposals; the best one is part of the answer in any case."""
    union_mask_logits: Float[Tensor, "batch mask_height mask_width"] | None = None
    """Of everything that is referred to, where the head draws it beside the targets' own masks."""


@dataclass(frozen=True, slots=True)
class FramedTarget:
    """A target as predicted, in the model frame, including the part on the padding of the letterbox."""

    size: tuple[int, int]
    """(height, width) of the model frame in pixels."""
    box_xyxy: tuple[float, float, float, float] | None
    """In pixels of the model frame; None where the head predicts no box."""
    mask: RLE | None
    """Mask logits > 0 over the whole model frame, at the resolution of the head."""


@dataclass(frozen=True, slots=True)
class Target:
    """One region found, in pixels of the original image."""

    box_xyxy: tuple[float, float, float, float]
    score: float
    mask: RLE | None = None
    box_is_from_mask: bool = False
    """The head predicts no box; this is the tight box of the mask."""
    frame: FramedTarget | None = None
    """The target before it was cut to the image; None where that is unknown."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one expression about one image; `error` is set where there is none."""

    id: str
    image: str
    expression: str
    width: int
    height: int
    targets: tuple[Target, ...]
    no_target: bool
    no_target_score: float | None
    weights: str
    error: str | None = None
    candidates: tuple[Target, ...] | None = None
    """With "no target": all proposals of the system before that decision, including empty masks. None: unknown,
    or in `targets`."""
    no_target_source: NoTargetSource | None = None
    """With "no target": the reason; None where the system does not state it."""
    unknown_words: tuple[str, ...] = ()
    """Words of the expression that the model does not know, as written."""
    unread_text: str = ""
    """The end of an expression that is too long for the model."""
    parse_failure: bool = False
    """The system answered, but its text states neither a box nor "no target" (`error` says why): the answer is wrong in
    every metric, not missing."""
    mask: RLE | None = None
    """Everything that the expression refers to, from a system that draws it beside the targets' own masks; None: the
    union of these."""

    @classmethod
    def to(cls, example: Example, targets: Iterable[Target], *, weights: str = "") -> Answer:
        """The answer of any system to an example; without targets it is "no target".

        Args:
            example: the question.
            targets: in pixels of the example's image.
            weights: the name of the system.
        """
        found = tuple(targets)
        return cls(
            example.id,
            example.image,
            example.expression,
            example.width,
            example.height,
            found,
            not found,
            None,
            weights,
        )

    def masks(self) -> Bool[np.ndarray, "targets height width"]:
        """The masks of the targets, in their order and in pixels of the image.

        Raises:
            UsageError: a target has no mask.
        """
        masks: np.ndarray = imported(VIEWS["masks"])(self)
        return masks

    def draw(self, image: ImageInput | None = None) -> Image:
        """Draw the answer as `predict --out` does: masks, boxes and scores, and the expression below.

        Args:
            image: a path, the bytes of a file, RGB uint8 pixels [height, width, 3], or a Pillow image; None: the file
                `self.image`. An answer about an array or a Pillow image does not keep it.

        Returns:
            An RGB image; small images are enlarged, and a caption is added below.

        Raises:
            UsageError: no image is given, and there is no such file.
            RefcliError: the image cannot be read, or has another size.
        """
        drawing: Image = imported(VIEWS["draw"])(self, image)
        return drawing

    def to_supervision(self) -> Any:  # noqa: ANN401 - supervision is optional
        """The targets as `supervision.Detections`: boxes, scores, masks if all have one, the expression as class name.

        Raises:
            UsageError: supervision is not installed.
        """
        return imported(VIEWS["to_supervision"])(self)

    def _repr_png_(self) -> bytes | None:
        png: bytes | None = imported(VIEWS["png"])(self)
        return png

    def _repr_html_(self) -> str | None:
        html: str | None = imported(VIEWS["html"])(self)
        return html

    @property
    def proposals(self) -> tuple[Target, ...]:
        """The system's proposals before its decision about existence, as far as known."""
        return self.targets if self.candidates is None else self.candidates
