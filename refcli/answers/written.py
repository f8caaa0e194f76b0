"""Shared code of the writers: answers grouped by image, categories from expressions, file names, and the result."""

from __future__ import annotations

import json
import math
import re
import tempfile
import weakref
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

import msgspec

from refcli.answers.jsonl import as_written
from refcli.contracts.prediction import Answer, Target
from refcli.files import is_plain_name
from refcli.geometry.boxes import is_finite

MOST_BYTES_IN_MEMORY = 32 << 20
_NO_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(slots=True)
class AnsweredImage:
    """An image with all answers about it."""

    image: str
    width: int
    height: int
    answers: list[Answer] = field(default_factory=list)

    @property
    def found(self) -> Iterator[tuple[Answer, Target]]:
        """Every target, with the answer that it belongs to."""
        return ((answer, target) for answer in self.answers for target in answer.targets)


@dataclass(slots=True)
class Written:
    """The result of a writer.

    Args:
        files: names of the files, below the output folder.
        num_answers: answers that were written.
        num_targets: boxes that were written.
        num_low_scores: answers left out because all their targets have a low score.
        failed: ids of answers that the formats cannot represent: with an error, without an image or its size, with
            another size than an earlier answer about the same image, or with masks, numbers or inverted boxes that do
            not fit it.
    """

    files: list[str] = field(default_factory=list)
    num_answers: int = 0
    num_targets: int = 0
    num_low_scores: int = 0
    failed: list[str] = field(default_factory=list)


def usable(answers: Iterable[Answer], written: Written, *, min_score: float = 0.0) -> Iterator[Answer]:
    """The answers that the formats can represent; counts them, and lists the others in `written`.

    Args:
        answers: in any order.
        written: is updated.
        min_score: targets with a lower score are left out. An answer that loses all its targets, here or when it was
            made (`no_target_source: min_score`), is left out with them: a low score does not mean that there is no
            target.
    """
    sizes: dict[str, tuple[int, int]] = {}
    for answer in answers:
        if not _is_representable(answer) or sizes.setdefault(answer.image, _size(answer)) != _size(answer):
            written.failed.append(answer.id)
            continue
        kept = tuple(target for target in answer.targets if target.score >= min_score)
        if not kept and (answer.targets or answer.no_target_source == "min_score"):
            written.num_low_scores += 1
            continue
        written.num_answers += 1
        written.num_targets += len(kept)
        yield answer if len(kept) == len(answer.targets) else replace(answer, targets=kept)


def _is_representable(answer: Answer) -> bool:
    if answer.error is not None or not answer.image or answer.width <= 0 or answer.height <= 0:
        return False
    return all(
        is_finite(target.box_xyxy)
        and target.box_xyxy[0] <= target.box_xyxy[2]
        and target.box_xyxy[1] <= target.box_xyxy[3]
        and math.isfinite(target.score)
        and (target.mask is None or tuple(target.mask.size) == _size(answer))
        for target in answer.targets
    )


def _size(answer: Answer) -> tuple[int, int]:
    """(height, width) in pixels."""
    return answer.height, answer.width


class AnsweredImages:
    """The images of answers, in the order in which they first appear, each with all its answers.

    Answers of more than `MOST_BYTES_IN_MEMORY` are kept in a temporary file, so that memory grows with the number of
    images and answers by some bytes each, whatever the size of the masks.
    """

    def __init__(self, answers: Iterable[Answer]) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=MOST_BYTES_IN_MEMORY)  # noqa: SIM115 - closed below
        weakref.finalize(self, self._file.close)
        self._places: dict[str, array[int]] = {}
        """Image -> the places of its answers in the file, each followed by the length."""
        encoder, place = msgspec.msgpack.Encoder(), 0
        for answer in answers:
            try:
                record = encoder.encode(answer)
            except UnicodeEncodeError:  # a file name that is not UTF-8
                answer = as_written(answer)
                record = encoder.encode(answer)
            self._file.write(record)
            self._places.setdefault(answer.image, array("Q")).extend((place, len(record)))
            place += len(record)
        self._decoder = msgspec.msgpack.Decoder(Answer)

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[AnsweredImage]:
        for image, places in self._places.items():
            answers = [self._read(*each) for each in zip(places[::2], places[1::2], strict=True)]
            yield AnsweredImage(image, answers[0].width, answers[0].height, answers)

    def _read(self, place: int, length: int) -> Answer:
        self._file.seek(place)
        return self._decoder.decode(self._file.read(length))


def by_image(answers: Iterable[Answer]) -> AnsweredImages:
    """The images in the order in which they first appear; they can be iterated over several times."""
    return AnsweredImages(answers)


def json_parts(value: object) -> Iterator[bytes]:
    """A value as JSON, in parts: an iterator is a list, of which one item at a time is in memory.

    Iterators are found at the outermost level and in the values of objects.
    """
    if isinstance(value, dict) and value:
        for number, (key, each) in enumerate(value.items()):
            yield f"{', ' if number else '{'}{json.dumps(key)}: ".encode()
            yield from json_parts(each)
        yield b"}"
    elif isinstance(value, Iterator):
        yield b"["
        for number, each in enumerate(value):
            yield f"{', ' if number else ''}{json.dumps(each)}".encode()
        yield b"]"
    else:
        yield json.dumps(value).encode()


def categories(images: Iterable[AnsweredImage]) -> dict[str, int]:
    """Every expression with its index, from 0, in the order in which they first appear."""
    return {name: index for index, name in enumerate(dict.fromkeys(a.expression for i in images for a in i.answers))}


def file_names(images: Iterable[AnsweredImage], suffix: str) -> list[str]:
    """A file name per image: its stem, numbered if several images share it (ignoring case)."""
    taken: set[str] = set()
    last: Counter[str] = Counter()
    names = []
    for image in images:
        stem = PurePath(image.image.replace("\\", "/")).stem
        stem = stem if is_plain_name(stem) else "image"
        name = stem
        while name.lower() in taken:
            last[stem.lower()] += 1
            name = f"{stem}-{last[stem.lower()] + 1}"
        taken.add(name.lower())
        names.append(name + suffix)
    return names


def image_file(image: str) -> Path | None:
    """The absolute path of an image that is named relative to the current folder; None if there is no such file."""
    with suppress(OSError, ValueError):
        path = Path(image)
        return path.absolute() if path.is_file() else None
    return None


def xml_text(text: str) -> str:
    """The text with a space for each character that XML 1.0 cannot represent."""
    return _NO_XML.sub(" ", text)
