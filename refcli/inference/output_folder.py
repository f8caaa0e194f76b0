"""Answers as files: drawings, 1-bit masks and predictions.jsonl."""

from __future__ import annotations

import io
import json
import os
import re
import unicodedata
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
from PIL import Image

from refcli.contracts.prediction import Answer
from refcli.errors import ImageError, UsageError
from refcli.files import write_atomically
from refcli.geometry.masks import decode_mask
from refcli.inference.answers import answer_to_json
from refcli.inference.draw import blank_picture, draw_answer
from refcli.inference.predictor import read_pixels
from refcli.inference.requests import ImageSource, identity

PREDICTIONS = "predictions.jsonl"
OWN_NAME = re.compile(r"\d{5}-[a-z0-9-]+\.(png|jpg)")
"""How drawings and masks are called."""
LONGEST_NAME_PART = 40
LARGEST_PNG_PIXELS = 2_000_000
"""Larger drawings are written as JPEG: a PNG of a photograph takes seconds and ten times the space."""

PNG_LEVEL = 3
JPEG_QUALITY = 92


class OutputFolder:
    """Writes answers as they come: `overlays/`, `masks/`, and `predictions.jsonl` when all are there.

    Use it as a context manager. Until it is left, the lines are in `predictions.jsonl.partial`, which stays behind if
    the run is broken off.

    Args:
        path: the folder; it is made where it does not exist, and what an earlier run drew is removed.

    Raises:
        UsageError: the folder cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            for folder in (path / "overlays", path / "masks"):
                folder.mkdir(parents=True, exist_ok=True)
                for file in folder.iterdir():
                    if OWN_NAME.fullmatch(file.name):
                        file.unlink()
        except OSError as error:
            raise UsageError(f"the folder cannot be made: {error.strerror}", where=str(path)) from error
        self._partial = path / f"{PREDICTIONS}.partial"
        self._lines = self._partial.open("w", encoding="utf-8")
        self._count = 0
        self._last: tuple[ImageSource, np.ndarray] | None = None

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.flush()
        os.fsync(self._lines.fileno())
        self._lines.close()
        if kind is None:
            self._partial.replace(self.path / PREDICTIONS)

    def add(self, answer: Answer, source: ImageSource) -> Image.Image:
        """Write one answer; returns its drawing, in which a grey field stands for a picture that cannot be read."""
        self._lines.write(json.dumps(answer_to_json(answer), ensure_ascii=False) + "\n")
        name = f"{self._count:05d}-{_slug(Path(answer.image).stem)}-{_slug(answer.expression)}"
        self._count += 1
        for number, target in enumerate(answer.targets):
            if target.mask is not None:
                mask = Image.fromarray(decode_mask(target.mask))
                write_atomically(self.path / "masks" / f"{name}-{number}.png", encode_picture(mask, "PNG"))
        drawing = draw_answer(self._read(source), answer)
        is_small = drawing.width * drawing.height <= LARGEST_PNG_PIXELS
        path = self.path / "overlays" / f"{name}.{'png' if is_small else 'jpg'}"
        write_atomically(path, encode_picture(drawing, "PNG" if is_small else "JPEG"))
        return drawing

    def _read(self, source: ImageSource) -> np.ndarray:
        """The pixels of a picture, decoded once for answers about it that follow each other."""
        if self._last is not None and identity(source) == identity(self._last[0]):
            return self._last[1]
        try:
            pixels = read_pixels(source)
        except ImageError:
            pixels = blank_picture()
        self._last = source, pixels
        return pixels


def _slug(text: str) -> str:
    """A file-name part of plain letters, digits and dashes."""
    plain = unicodedata.normalize("NFKD", text[: 4 * LONGEST_NAME_PART]).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9]+", "-", plain)[:LONGEST_NAME_PART].strip("-").lower() or "x"


def encode_picture(image: Image.Image, kind: Literal["PNG", "JPEG"]) -> bytes:
    """A picture file in memory; PNGs are compressed lightly, which is three times as fast and a tenth larger."""
    buffer = io.BytesIO()
    if kind == "PNG":
        image.save(buffer, format=kind, compress_level=PNG_LEVEL)
    else:
        image.save(buffer, format=kind, quality=JPEG_QUALITY)
    return buffer.getvalue()
