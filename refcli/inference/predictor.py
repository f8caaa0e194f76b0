"""The Predictor: weights in memory, answering expressions about images one by one or as a stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from refcli.contracts.prediction import Answer, Prediction
from refcli.data.sources.synthetic import vocabulary
from refcli.data.training.transforms import letterbox
from refcli.drawing.overlays import resize_for_drawing
from refcli.errors import ExpressionError, UsageError, WeightsError
from refcli.inference.device import Precision, choose_device, choose_precision, default_batch_size
from refcli.inference.image_sources import ImageSource, open_source
from refcli.inference.postprocess import failed_answer, filter_targets, prediction_on_cpu, raw_answer
from refcli.inference.read_ahead import DecodedImage, DecodedRequest, ReadAhead
from refcli.inference.requests import Request
from refcli.text.tokenizer import UNLEARNED_MARKS, Reading, pad_token_ids
from refcli.weights.directory import LoadedWeights, load_weights
from refcli.weights.locate import BUILTIN


class AnsweredRequest(NamedTuple):
    """A request with its answer."""

    request: Request
    answer: Answer
    drawable: np.ndarray | None = None
    """The decoded image in the size of a drawing, uint8 RGB [height, width, 3]; None unless `keep_images` asked for it
    and the image could be read."""


class Predictor:
    """Answers expressions about images.

    Args:
        weights: `builtin`, a catalogue name, a pulled hf:// address, a weights directory, or loaded weights (their
            model is moved to `device` and `precision`).
        device: `auto`, `cpu`, `cuda` or `mps`.
        precision: type of the weights; `auto` is bf16 where that is faster, which is measured on a CPU.
        batch_size: pairs per forward pass; None chooses by device.
        min_score: targets below this confidence are dropped; None: only the model's own threshold applies.

    Raises:
        WeightsError: missing weights, or weights that do not fit.
        UsageError: an unavailable device, or a batch size below 1.
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
            raise UsageError(f"a batch has at least one pair, not {self.batch_size}", where="batch_size")
        self.min_score = min_score
        loaded = weights if isinstance(weights, LoadedWeights) else load_weights(str(weights))
        if loaded.meta.get("tasks") == []:
            raise WeightsError(
                "these weights are only pre-trained: they cannot answer expressions yet",
                where=loaded.name,
                hint="fine-tune them first: refcli finetune --init",
            )
        self.weights = loaded.name
        self.checksums: object = loaded.meta.get("files")
        """sha256 of the files of the weights, if known."""
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
        texts = [expressions] if isinstance(expressions, str) else expressions
        name = str(image) if isinstance(image, str | Path) else f"<{type(image).__name__}>"
        return list(self.predict_many(Request(str(n), name, text, image) for n, text in enumerate(texts)))

    def predict_many(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Answer a stream of requests, in order, as they arrive.

        Images are decoded ahead of the model, once for neighbouring requests about the same one, and pairs are
        batched across images. An image that cannot be read, or an empty expression, gives an answer with `error`.
        """
        for answered in self.answer_requests(requests):
            yield answered.answer

    def answer_requests(
        self, requests: Iterable[Request], *, raw: bool = False, keep_images: bool = False
    ) -> Iterator[AnsweredRequest]:
        """Answer a stream of requests as `predict_many` does, and return each answer with its request.

        Args:
            requests: the requests to answer.
            raw: keep the targets of an answer that is "no target", and those below `min_score`.
            keep_images: return the decoded images for drawings.
        """
        read_ahead = ReadAhead(
            partial(self._decode, keep_image=keep_images), batch_size=self.batch_size, keeps_drawables=keep_images
        )
        for batch in read_ahead.batches(requests):
            for answer in self._answer(batch):
                item = batch.pop(0)  # frees its image as soon as the caller is done with it
                drawable = item.image.drawable if item.image else None
                final = answer if raw else filter_targets(answer, self.min_score)
                yield AnsweredRequest(item.request, final, drawable)

    def _decode(self, source: ImageSource, *, keep_image: bool) -> DecodedImage:
        opened = open_source(source)
        pixels, frame = letterbox(opened.image, self.settings.tower, size=(opened.width, opened.height))
        if not keep_image:
            return DecodedImage(pixels, frame)
        image = source if isinstance(source, np.ndarray) else np.asarray(opened.image)
        return DecodedImage(pixels, frame, resize_for_drawing(image))

    def _answer(self, batch: Sequence[DecodedRequest]) -> list[Answer]:
        readings = [item.error or self._read(item.request.expression) for item in batch]
        answerable = [(item, one) for item, one in zip(batch, readings, strict=True) if isinstance(one, Reading)]
        answers = iter(self._answer_readings(answerable))
        return [
            next(answers) if isinstance(reading, Reading) else self._failed(item, reading)
            for item, reading in zip(batch, readings, strict=True)
        ]

    def _failed(self, item: DecodedRequest, error: str) -> Answer:
        image = item.image if item.request.error is None else None
        return failed_answer(item.request, error, self.weights, image.frame if image else None)

    def _read(self, expression: str) -> Reading | str:
        """The tokens of an expression, or the reason why it cannot be answered."""
        try:
            return self._tokenizer.read(
                expression, unlearned_marks=self._unlearned_marks, learned_words=self._learned_words
            )
        except ExpressionError as error:
            return error.message

    def _answer_readings(self, answerable: Sequence[tuple[DecodedRequest, Reading]]) -> list[Answer]:
        if not answerable:
            return []
        images = [item.image for item, _ in answerable if item.image is not None]
        prediction = self._run(images, [reading.token_ids for _, reading in answerable])
        return [
            replace(
                raw_answer(prediction, row, image.frame, item.request, self.weights),
                unknown_words=reading.unknown_words,
                unread_text=reading.unread_text,
            )
            for row, ((item, reading), image) in enumerate(zip(answerable, images, strict=True))
        ]

    @torch.inference_mode()
    def _run(self, images: Sequence[DecodedImage], encoded: Sequence[Sequence[int]]) -> Prediction:
        pixels = torch.from_numpy(np.stack([image.pixels for image in images]))
        token_ids, token_is_pad = pad_token_ids(encoded)
        prediction = self._grounder.predict(
            pixels.to(device=self.device, dtype=self.dtype),
            torch.from_numpy(token_ids).to(self.device),
            torch.from_numpy(token_is_pad).to(self.device),
        )
        return prediction_on_cpu(prediction)
