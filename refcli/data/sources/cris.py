"""The layout of CRIS, CGFormer, ETRIS and RefCOCOm: `anns/<name>/<split>.json` and `masks/<name>/<segment_id>.png`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec

from refcli.config.schema import Settings
from refcli.data.reading.json_files import read_json
from refcli.data.reading.mask_images import list_masks, mask_size, read_mask_image
from refcli.data.reading.streams import text_start
from refcli.data.sources.image_names import ImageOrigin, named_image
from refcli.data.sources.known_keys import KeyLog, KnownKeys
from refcli.data.sources.record import Problems, RawExpression, RawImage, RawRecord, RawRegion, Source
from refcli.data.sources.rows import Rejections, decode_row
from refcli.errors import DataError
from refcli.geometry.boxes import BoxXYXY

MASKS = "masks"
_ENTRY = KnownKeys(
    "entry",
    frozenset({"bbox", "segment_id", "img_name", "sentences", "sentences_num"}),
    frozenset({"cat"}),
    has_box=True,
    has_corners=True,
)
_SENTENCE = KnownKeys("sentence", frozenset({"sent", "sent_id"}), frozenset({"idx", "raw", "tokens"}))
_FIRST_KEYS = re.compile(rb'\[\s*\{\s*"(?:bbox|cat|segment_id|img_name|sentences|sentences_num)"\s*:')


class CrisSettings(Settings):
    """Options of the reader of CRIS's layout."""

    masks: bool = True
    """Whether to read the masks. If not, regions are boxes only, which the authors truncated to whole pixels."""
    images: ImageOrigin = "auto"
    """Where the images come from. `auto`: COCO where a file is named COCO_train2014_...; `own`: the data set itself."""


class _CrisSentence(msgspec.Struct):
    sent: str
    sent_id: int | str | None = None


class _Entry(msgspec.Struct):
    segment_id: int | str
    img_name: str
    sentences: list[msgspec.Raw]
    bbox: BoxXYXY | None = None
    sentences_num: int | None = None


def read_cris(
    files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
) -> Iterator[RawRecord]:
    """Yield one record per entry; see `Reader`.

    The size of an image is that of its masks. A box that truncation left without extent is replaced by the mask's.

    Args:
        files: split -> file; optionally `masks`, a folder or archive of `<segment_id>.png`, by default the folder
            `masks/<name>` beside the folder `anns` that a file `anns/<name>/<split>.json` is in.
        settings: a `CrisSettings`.
        dataset: prefix of the keys of images that are not COCO's, and of the ids of regions.
        problems: collects omitted entries, `broken_row` (also one whose `sentences_num` is not its number of
            sentences), `broken_sentence` and `ref_without_sentences`; `mask_missing` and `box_without_extent`, which
            are kept.

    Raises:
        DataError: there are no masks, an id occurs twice, or no entry can be used.
    """
    assert isinstance(settings, CrisSettings)
    for split, path in files.items():
        if split != MASKS:
            folder = _masks_of(files, path) if settings.masks else None
            yield from _Reading(split, path, dataset, settings, problems, folder).records()


def sniff_cris(path: Path) -> bool:
    """Whether a file is a list of entries with a `segment_id`, an `img_name` and sentences."""
    start = text_start(path)
    keys = (b'"segment_id"', b'"img_name"', b'"sentences"')
    return _FIRST_KEYS.match(start) is not None and all(key in start for key in keys)


def _masks_of(files: Mapping[str, Path], path: Path) -> Path:
    folder = files.get(MASKS, path.parent.parent.parent / MASKS / path.parent.name)
    if not folder.exists():
        raise DataError(
            "the masks are missing",
            where=str(folder),
            hint="give --with masks=FOLDER, or read the truncated boxes only: --set masks=false",
        )
    return folder


@dataclass(frozen=True)
class _Reading:
    """The state of one file while it is read."""

    split: str
    path: Path
    dataset: str
    settings: CrisSettings
    problems: Problems
    folder: Path | None
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Image -> (width, height) of its first mask."""

    def records(self) -> Iterator[RawRecord]:
        masks = {} if self.folder is None else list_masks(self.folder)
        keys = KeyLog(self.path.name, self.problems)
        rejected = Rejections(self.problems)
        seen: set[str] = set()
        for index, row in enumerate(read_json(self.path, list[msgspec.Raw])):
            where = f"{self.path.name}: entry {index}"
            try:
                entry = decode_row(
                    row, _Entry, where=where, problems=self.problems, needed=("sentences_num",), keys=(_ENTRY, keys)
                )
                if entry.sentences_num not in (None, len(entry.sentences)):
                    raise DataError(
                        f"sentences_num is {entry.sentences_num}, but there are {len(entry.sentences)}", where=where
                    )
                record = self._record(entry, masks.get(str(entry.segment_id)), keys, where)
            except DataError as error:
                rejected.add(error, where)
                continue
            for expression in record.expressions:
                if expression.id in seen:
                    raise DataError(f"the id {expression.id} (segment_id/sent_id) occurs twice", where=where)
                seen.add(expression.id)
            if record.expressions:
                yield record
            else:
                self.problems.add("ref_without_sentences", where)
        keys.finish()
        if not seen:
            rejected.raise_first()

    def _record(self, entry: _Entry, mask: str | None, keys: KeyLog, where: str) -> RawRecord:
        image = self._image(entry.img_name, mask)
        texts = tuple(self._texts(entry, keys, where))
        region = self._region(entry, mask, where)
        return RawRecord(self.split, image, texts, (region,), where)

    def _texts(self, entry: _Entry, keys: KeyLog, where: str) -> Iterator[RawExpression]:
        rejected = Rejections(self.problems, "broken_sentence")
        for number, row in enumerate(entry.sentences):
            place = f"{where}, sentence {number}"
            try:
                sentence = decode_row(
                    row, _CrisSentence, where=place, problems=self.problems, needed=(), keys=(_SENTENCE, keys)
                )
            except DataError as error:
                rejected.add(error, place)
                continue
            own_id = number if sentence.sent_id is None else sentence.sent_id
            yield RawExpression(f"{entry.segment_id}/{own_id}", sentence.sent)

    def _region(self, entry: _Entry, mask: str | None, where: str) -> RawRegion:
        box = entry.bbox
        source_id = f"{self.dataset}:{entry.segment_id}"
        if self.folder is None:
            return RawRegion(box, None, source_id)
        if mask is None:
            self.problems.add("mask_missing", where, f"{entry.segment_id}.png")
            return RawRegion(box, None, source_id, has_lost_mask=True)
        if box is not None and _is_flat(box):
            self.problems.add("box_without_extent", where, f"{list(box)}: the extent of the mask is used")
            box = None
        return RawRegion(box, partial(read_mask_image, self.folder, mask), source_id)

    def _image(self, name: str, mask: str | None) -> RawImage:
        if name not in self.sizes and mask is not None and self.folder is not None:
            self.sizes[name] = mask_size(self.folder, mask)
        width, height = self.sizes.get(name, (None, None))
        return named_image(name, dataset=self.dataset, width=width, height=height, origin=self.settings.images)


def _is_flat(box: Sequence[float]) -> bool:
    left, top, right, bottom = box
    return left == right or top == bottom


SOURCE = Source(
    description="CRIS's anns/<name>/<split>.json with masks/<name>/<segment_id>.png: RefCOCOm, CGFormer, ETRIS",
    read=read_cris,
    settings=CrisSettings,
    files={"*": (), MASKS: (MASKS, "masks.zip")},
    sniff=sniff_cris,
    optional=frozenset({MASKS}),
)
