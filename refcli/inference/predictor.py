"""The Predictor: weights in memory, answering expressions about images one by one or as a stream."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from refcli.contracts.prediction import Answer, Prediction
from refcli.data.reading.images import ScaledImage, open_scaled
from refcli.data.sources.synthetic import vocabulary
from refcli.data.training.transforms import letterbox
from refcli.errors import ExpressionError, ImageError, UsageError, WeightsError
from refcli.inference.device import Precision, choose_device, choose_precision, default_batch_size
from refcli.inference.postprocess import failed_answer, gated, prediction_on_cpu, ungated_answer
from refcli.inference.read_ahead import Picture, Prepared, ReadAhead
from refcli.inference.requests import ImageSource, Request
from refcli.text.tokenizer import UNLEARNED_MARKS, Reading
from refcli.weights.directory import LoadedWeights, load_weights
from refcli.weights.locate import BUILTIN

MODES_OF_TIFF = frozenset({"CMYK", "F", "LAB", "YCbCr"})
"""Pillow modes that a PNG cannot hold."""


class Predictor:
    """Answers expressions about images.

    Args:
        weights: `builtin`, a catalogue name, a pulled hf:// address, a weights directory, or loaded weights (their
            model is moved to `device` and `precision`).
        device: `auto`, `cpu`, `cuda` or `mps`.
        precision: type of the weights; `auto` is bf16 where that is faster, which on a CPU is tried out.
        batch_size: pairs per forward pass; None chooses by device.
        min_score: targets below this confidence are dropped; None keeps what the model's own threshold keeps.

    Raises:
        WeightsError: missing or ill-fitting weights.
        UsageError: a device that is not there, or a batch size below 1.
    """

    def __init__(
        self,
        weights: str | Path | LoadedWeights = "builtin",
        *,
        device: str = "auto",
        precision: Precision = "auto",
        batch_size: int | None = None,
        min_score: float | None = None,
    ) -> None:
        self.device = choose_device(device)
        self.batch_size = default_batch_size(self.device) if batch_size is None else batch_size
        if self.batch_size < 1:
            raise UsageError(f"a batch of {self.batch_size} cannot be computed", where="batch_size")
        self.min_score = min_score
        loaded = weights if isinstance(weights, LoadedWeights) else load_weights(str(weights))
        if loaded.meta.get("tasks") == []:
            raise WeightsError(
                "these weights are pre-trained only: they were trained for no task that could be asked",
                where=loaded.name,
                hint="fine-tune them first: refcli finetune --init",
            )
        self.weights = loaded.name
        self.checksums: object = loaded.meta.get("files")
        """sha256 of the files of the weights, where they are stated."""
        self.settings = loaded.settings
        self._tokenizer = loaded.tokenizer
        is_packaged = loaded.name == BUILTIN
        self._learned_words = frozenset(vocabulary()) if is_packaged else None
        self._unlearned_marks = UNLEARNED_MARKS if is_packaged else frozenset()
        num_parameters = sum(parameter.numel() for parameter in loaded.grounder.parameters())
        self.dtype = choose_precision(precision, self.device, num_parameters)
        self._grounder = loaded.grounder.to(device=self.device, dtype=self.dtype).eval()

    def predict(self, image: ImageSource, expressions: str | Sequence[str]) -> list[Answer]:
        """Answer one or several expressions about one image, in their order.

        Args:
            image: a path, an encoded file as bytes, RGB uint8 pixels [height, width, 3], or a Pillow image.
            expressions: what to look for; an empty one is answered with an `error`.
        """
        asked = [expressions] if isinstance(expressions, str) else list(expressions)
        name = str(image) if isinstance(image, str | Path) else f"<{type(image).__name__}>"
        return list(self.predict_many(Request(str(n), name, text, image) for n, text in enumerate(asked)))

    def predict_many(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Answer a stream of requests, in order, as they come.

        Images are decoded ahead of the model, once for neighbouring requests about the same one, and pairs are
        batched across images. An image that cannot be read, or an empty expression, gives an answer with `error`.
        """
        for answer in self.ungated(requests):
            yield gated(answer, self.min_score)

    def ungated(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """As `predict_many`, but targets stay where the model says that there is none (`no_target` tells)."""
        for batch in ReadAhead(self._picture, batch_size=self.batch_size).batches(requests):
            yield from self._answer(batch)

    def _picture(self, source: ImageSource) -> Picture:
        read = read_scaled(source)
        pixels, frame = letterbox(read.image, self.settings.tower, size=(read.width, read.height))
        return Picture(pixels, frame)

    def _answer(self, batch: Sequence[Prepared]) -> list[Answer]:
        readings = [item.error or self._read(item.request.expression) for item in batch]
        asked = [(item, reading) for item, reading in zip(batch, readings, strict=True) if isinstance(reading, Reading)]
        answers = iter(self._answer_asked(asked))
        return [
            failed_answer(item.request, reading, self.weights, item.picture.frame if item.picture else None)
            if isinstance(reading, str)
            else next(answers)
            for item, reading in zip(batch, readings, strict=True)
        ]

    def _read(self, expression: str) -> Reading | str:
        """What the model gets to read, or why it cannot be asked."""
        try:
            return self._tokenizer.read(
                expression, unlearned_marks=self._unlearned_marks, learned_words=self._learned_words
            )
        except ExpressionError as error:
            return error.message

    def _answer_asked(self, asked: Sequence[tuple[Prepared, Reading]]) -> list[Answer]:
        if not asked:
            return []
        pictures = [item.picture for item, _ in asked if item.picture is not None]
        prediction = self._run(pictures, [reading.text for _, reading in asked])
        return [
            replace(
                ungated_answer(prediction, row, picture.frame, item.request, self.weights),
                unknown_words=reading.unknown_words,
                unread_text=reading.unread_text,
            )
            for row, ((item, reading), picture) in enumerate(zip(asked, pictures, strict=True))
        ]

    @torch.inference_mode()
    def _run(self, pictures: Sequence[Picture], expressions: Sequence[str]) -> Prediction:
        images = torch.from_numpy(np.stack([picture.pixels for picture in pictures]))
        token_ids, token_is_pad = self._tokenizer.encode_batch(expressions)
        prediction = self._grounder.predict(
            images.to(device=self.device, dtype=self.dtype),
            torch.from_numpy(token_ids).to(self.device),
            torch.from_numpy(token_is_pad).to(self.device),
        )
        return prediction_on_cpu(prediction)


def read_pixels(source: ImageSource) -> np.ndarray:
    """RGB uint8 [height, width, 3] of any image source, reduced as `read_scaled` does.

    Raises:
        ImageError: as `read_scaled`.
    """
    return np.asarray(read_scaled(source).image)


def read_scaled(source: ImageSource) -> ScaledImage:
    """Any image source as an upright RGB image; files of very many pixels are reduced as they are decoded.

    Raises:
        ImageError: it cannot be read, or an array is not of that shape and type.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
            raise ImageError(
                f"an array must be uint8 RGB [height, width, 3], this one is {source.dtype} {list(source.shape)}"
            )
        return ScaledImage(Image.fromarray(source), source.shape[1], source.shape[0])
    if isinstance(source, Image.Image):
        upright = ImageOps.exif_transpose(source)
        if upright.mode == "RGB" and upright.info.get("transparency") is None:
            return ScaledImage(upright, upright.width, upright.height)
        buffer = io.BytesIO()  # the one place that knows every mode reads files
        upright.save(buffer, format="TIFF" if upright.mode in MODES_OF_TIFF else "PNG")
        return open_scaled(buffer.getvalue())
    return open_scaled(source)
