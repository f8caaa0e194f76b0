"""The tables of Rex-Omni and HumanRef-CoT: images as base64 in one file, and their boxes with phrases in another.

A line of `*.images.tsv` is `key TAB base64`; the key is usually the line's byte offset. A line of `*.annotations.tsv`
is `offset TAB {"boxes": [{"bbox": [x1, y1, x2, y2], "phrase"}, ...]}`, with the byte offset of its image's line in the
first file, and boxes in pixels. All boxes of a phrase are its targets; a phrase whose `bbox` is null has no target in
the image. In HumanRef-CoT a line is `offset TAB {"gt_boxes": [[x, y, width, height], ...], "region_map": {phrase:
[number of a box, ...]}, "think"}`. The index `*.lineidx` is not needed.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import msgspec

from refcli.config.schema import Settings
from refcli.data.reading.json_files import parse_json
from refcli.data.reading.streams import MAX_STREAM_BYTES, invalid_utf8, open_binary, text_start
from refcli.data.sources.coco.instances import BoxXYWH, xywh_to_xyxy
from refcli.data.sources.image_names import stored_image
from refcli.data.sources.known_keys import KeyLog, KnownKeys
from refcli.data.sources.record import Problems, RawExpression, RawRecord, RawRegion, Source
from refcli.data.sources.rows import Rejections, are_fractions, decode_row, read_json_lines, whole_number
from refcli.errors import DataError
from refcli.geometry.boxes import BoxXYXY

IMAGES = "images"
_MAX_KEY_BYTES = 4096
_MAX_IMAGE_BYTES = 200_000_000
_WRAPPING = b"b'", b"'"
"""Around the base64 of files whose writer printed Python's bytes."""
_MAX_LINE_BYTES = _MAX_KEY_BYTES + _MAX_IMAGE_BYTES // 3 * 4 + 8
"""Of a key and an image in base64."""
_FIRST_LINE = re.compile(rb'\d+\t\{[^\n]*"(boxes|region_map)"\s*:')
_Phrases = list[tuple[str, list[BoxXYXY]]]
"""Phrases with their boxes; none: no target."""


class _Box(msgspec.Struct):
    bbox: BoxXYXY | None
    phrase: str


class _Line(msgspec.Struct):
    boxes: list[msgspec.Raw]


class _MappedLine(msgspec.Struct):
    gt_boxes: list[BoxXYWH]
    region_map: dict[str, list[int]]


_LINE_KEYS = KnownKeys("line", frozenset(_Line.__struct_fields__), has_corners=True)
_MAPPED_KEYS = KnownKeys("line", frozenset(_MappedLine.__struct_fields__), frozenset({"think"}))
_BOX_KEYS = KnownKeys("box", frozenset(_Box.__struct_fields__), has_box=True, has_corners=True)


@dataclass
class TsvImages:
    """The images of one `*.images.tsv` by byte offset; picklable. The file is opened when needed."""

    file: Path
    _stream: BinaryIO | None = field(default=None, init=False, compare=False)
    _last: tuple[int, bytes] = field(default=(-1, b""), init=False, compare=False)
    """The offset and the content of the image that was read last."""

    def key(self, offset: int) -> str:
        """The key of the image whose line starts at an offset.

        Raises:
            DataError: no line with a key starts there.
        """
        is_start = not offset or self._at(offset - 1).read(1) == b"\n"
        key, tab, _ = self._at(offset).read(_MAX_KEY_BYTES + 1).partition(b"\t")
        if not is_start or not tab or not key.strip() or invalid_utf8(key) is not None:
            raise DataError(f"no image starts at byte {offset:,} of {self.file.name}")
        return key.decode().strip()

    def content(self, offset: int) -> bytes:
        """The image file in the line that starts at an offset; the last one is kept, as several phrases share it.

        Raises:
            DataError: the line is too long or not base64.
        """
        if self._last[0] != offset:
            line = self._at(offset).readline(_MAX_LINE_BYTES + 1)
            if len(line) > _MAX_LINE_BYTES:
                raise DataError(f"the image at byte {offset:,} is too large", where=str(self.file))
            encoded = line.partition(b"\t")[2].strip().removeprefix(_WRAPPING[0]).removesuffix(_WRAPPING[1])
            try:
                self._last = offset, base64.b64decode(encoded, validate=True)
            except binascii.Error as error:
                raise DataError(f"the image at byte {offset:,} is not base64: {error}", where=str(self.file)) from error
        return self._last[1]

    def _at(self, offset: int) -> BinaryIO:
        if self._stream is None:
            self._stream = open_binary(self.file, max_bytes=MAX_STREAM_BYTES)
        self._stream.seek(offset)
        return self._stream

    def __reduce__(self) -> tuple[type[TsvImages], tuple[Path]]:
        return TsvImages, (self.file,)


@dataclass(frozen=True)
class TsvImage:
    """The image file at one offset; calling it reads it."""

    images: TsvImages
    offset: int

    def __call__(self) -> bytes:
        return self.images.content(self.offset)


def read_rex_tsv(
    files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
) -> Iterator[RawRecord]:
    """Yield one record per distinct phrase of an image, with all its boxes; see `Reader`.

    Phrases that differ only in case or surrounding blanks are the same; the first spelling is kept.

    Args:
        files: split -> annotations, and `images`.
        settings: none.
        dataset: prefix of the keys of images that are not COCO's.
        problems: collects `broken_line`, `broken_box` (all boxes of its phrase are left out), `contradictory_phrase`
            (with boxes and with null), `image_without_phrase`, `unused_key`.
    """
    images = TsvImages(files[IMAGES])
    for split, path in files.items():
        if split == IMAGES:
            continue
        log = KeyLog(path.name, problems)

        def records(line: bytes, number: int, where: str, split: str = split, log: KeyLog = log) -> list[RawRecord]:
            start, _, text = line.partition(b"\t")
            offset = whole_number(start.decode("ascii", "replace"))
            if offset is None:
                raise DataError("the line does not start with a byte offset and a tab", where=where)
            phrases = _phrases(text, where, log)
            key = images.key(offset)
            image = stored_image(TsvImage(images, offset), key if "." in key else None, dataset=dataset)
            if not phrases:
                problems.add("image_without_phrase", where, image.names[0])
            return [
                RawRecord(
                    split=split,
                    image=image,
                    expressions=(RawExpression(f"{number}/{index}", phrase),),
                    regions=tuple(map(RawRegion, boxes)),
                    where=where,
                )
                for index, (phrase, boxes) in enumerate(phrases)
            ]

        for found in read_json_lines(path, records, problems):
            yield from found
        log.finish()


def _phrases(text: bytes, where: str, log: KeyLog) -> _Phrases:
    """The phrases of a line in either form.

    Raises:
        DataError: the line cannot be used.
    """
    if "region_map" in parse_json(text, dict[str, msgspec.Raw], where=where):
        keys = (_MAPPED_KEYS, log)
        phrases = _mapped(
            decode_row(text, _MappedLine, where=where, problems=log.problems, needed=(), keys=keys), where
        )
    else:
        line = decode_row(text, _Line, where=where, problems=log.problems, needed=(), keys=(_LINE_KEYS, log))
        phrases = _merged(line, where, log)
    if are_fractions([box for _, boxes in phrases for box in boxes]):
        raise DataError("the boxes are in fractions of the image", where=where, hint="give them in pixels")
    return phrases


def _mapped(row: _MappedLine, where: str) -> _Phrases:
    """The phrases that refer to boxes by their numbers.

    Raises:
        DataError: there is no box of that number.
    """
    for phrase, numbers in row.region_map.items():
        if any(not 0 <= number < len(row.gt_boxes) for number in numbers):
            raise DataError(f"{phrase!r} refers to box {max(numbers)} of {len(row.gt_boxes)}", where=where)
    return [
        (phrase, [xywh_to_xyxy(row.gt_boxes[number]) for number in dict.fromkeys(numbers)])
        for phrase, numbers in row.region_map.items()
    ]


def _merged(row: _Line, where: str, log: KeyLog) -> _Phrases:
    """The distinct phrases of boxes, without those one of whose boxes cannot be used."""
    merged: dict[str, tuple[str, list[BoxXYXY]]] = {}
    absent: set[str] = set()
    left_out: set[str] = set()
    rejected = Rejections(log.problems, "broken_box")
    for number, raw in enumerate(row.boxes, 1):
        place = f"{where}, box {number}"
        try:
            one = decode_row(raw, _Box, where=place, problems=log.problems, needed=(), keys=(_BOX_KEYS, log))
        except DataError as error:
            rejected.add(error, place)
            left_out.add(_comparable(_phrase_of(raw)))
            continue
        _, boxes = merged.setdefault(_comparable(one.phrase), (one.phrase, []))
        if one.bbox is None:
            absent.add(_comparable(one.phrase))
        else:
            boxes.append(one.bbox)
    for key in absent & {key for key, (_, boxes) in merged.items() if boxes}:
        log.problems.add("contradictory_phrase", where, merged[key][0])
        left_out.add(key)
    return [named for key, named in merged.items() if key not in left_out]


def _phrase_of(raw: msgspec.Raw) -> str:
    """The phrase of a box that cannot be used, as far as it is readable."""
    try:
        return msgspec.json.decode(raw, type=_Phrase).phrase
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""


class _Phrase(msgspec.Struct):
    phrase: str = ""


def _comparable(phrase: str) -> str:
    return phrase.strip().casefold()


def _no_names(
    files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
) -> Iterator[RawRecord]:
    """No record: every image is in the file of images."""
    return iter(())


def sniff_rex_tsv(path: Path) -> bool:
    """Whether a file starts with a byte offset and boxes."""
    return _FIRST_LINE.match(text_start(path)) is not None


SOURCE = Source(
    description="Rex-Omni and HumanRef-CoT: *.annotations.tsv (offset, boxes with phrases), *.images.tsv (key, base64)",
    read=read_rex_tsv,
    settings=Settings,
    files={"*": (), IMAGES: ("{stem}.images.tsv", "images.tsv")},
    sniff=sniff_rex_tsv,
    read_names=_no_names,
)
