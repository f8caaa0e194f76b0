"""What the mapping of a row to records needs besides the row itself, and values that several layouts have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec
from pydantic import Field

from refcli.config.schema import Settings
from refcli.contracts.example import RLE
from refcli.data.sources.coco.instances import xywh_to_xyxy
from refcli.data.sources.image_names import ImageOrigin, coco_id, coco_image, stored_image
from refcli.data.sources.known_keys import KeyLog, KnownKeys, excerpt
from refcli.data.sources.parquet.images import RowImage, image_beside
from refcli.data.sources.record import Problems, RawExpression, RawImage, RawRecord, RawRegion
from refcli.data.sources.refcoco import TextField
from refcli.data.sources.rows import NUMBERS_OF_A_BOX, Row, are_fractions, convert_row, valid_side
from refcli.errors import DataError
from refcli.geometry.boxes import BoxXYXY

BoxFormat = Literal["xyxy", "xywh"]


class ColumnNames(Settings):
    """The names of the columns of a Parquet file that has no known layout."""

    image: str | None = None
    """The column of images: their bytes, structs of `bytes` and `path`, or file names."""
    file_name: str | None = None
    """The column of file names, where `image` has only bytes."""
    expression: str | None = None
    """The column of texts, or of lists of texts that refer to the same regions. If given, no known layout is used."""
    box: str | None = None
    """Four numbers, or a list of such boxes; see `box_format`."""
    mask: str | None = None
    """COCO polygons or run lengths, as values or as JSON; a list of run lengths has one entry per region."""
    no_target: str | None = None
    """Whether the image does not contain what the expression describes."""
    width: str | None = None
    """In pixels; read from the images if not given."""
    height: str | None = None
    """In pixels; read from the images if not given."""
    id: str | None = None
    """Default: the split and the number of the row in its files."""
    split: str | None = None
    """Default: the split in the name of the file, else train."""
    kind: str | None = None
    """The kind of expression; figures are also reported per kind."""


class ParquetSettings(Settings):
    """Options of the Parquet reader."""

    columns: ColumnNames = ColumnNames()
    box_format: BoxFormat | None = None
    """Numbers of `columns.box`, in pixels. `xyxy`: two corners, the far one exclusive; `xywh`: left, top and size."""
    images: ImageOrigin = "auto"
    """Where the images come from. `auto`: COCO where a file is named COCO_train2014_...; `own`: the data set itself."""
    text: TextField = "sent"
    """For layouts with REFER's sentences: `sent`, the cleaned sentence, or `raw`, as typed."""
    extract_images: bool = True
    """Whether to write the images inside the files into the store. If not, `--images` finds them by name."""
    split: str | None = Field(None, min_length=1)
    """The split of all rows; by default a column states it, or the name of the file."""
    splits: dict[str, str] = Field(default_factory=dict)
    """Split of the files -> its name in the store. `validation` is `val` unless it is named here."""


class ReferSentence(msgspec.Struct):
    """A sentence in REFER's form."""

    sent: str | None = None
    raw: str | None = None
    sent_id: int | None = None


SENTENCE_KEYS = KnownKeys("sentence", frozenset(ReferSentence.__struct_fields__), frozenset({"tokens"}))


@dataclass(frozen=True)
class RowContext:
    """The place of one row, its image, and the state of its file."""

    dataset: str
    split: str
    number: int
    """Within all files of the split, from 1."""
    where: str
    settings: ParquetSettings
    problems: Problems
    keys: KeyLog
    content: RowImage | None
    """The bytes of its image; None: the image is a file."""
    path: str | None
    """The name beside the bytes."""

    def image(
        self, file_name: str | None = None, *, width: int | None = None, height: int | None = None, origin: str = ""
    ) -> RawImage:
        """The image with a file name, which may be missing if the row has its bytes.

        Raises:
            DataError: there are neither bytes nor a name, or the name leads out of the image folder.
        """
        width, height = valid_side(width), valid_side(height)
        source: Any = origin or self.settings.images
        if self.content is None:
            return image_beside(
                file_name or self.path,
                dataset=self.dataset,
                where=self.where,
                width=width,
                height=height,
                origin=source,
            )
        name = file_name or (self.path if self.path and coco_id(self.path, origin=source) is not None else None)
        return stored_image(self.content, name, dataset=self.dataset, width=width, height=height, origin=source)

    def coco_image(self, image_id: int, *, width: int | None = None, height: int | None = None) -> RawImage:
        """COCO's image with an id."""
        image = coco_image(image_id, width=valid_side(width), height=valid_side(height))
        return image if self.content is None else replace(image, content=self.content)

    def part(self, value: object, kind: type[Row], known: KnownKeys) -> Row:
        """Convert a struct inside the row; its keys are checked like those of the row."""
        return convert_row(
            value,
            kind,
            where=self.where,
            problems=self.problems,
            needed=kind.__struct_fields__,
            keys=(known, self.keys),
        )

    def sentences(self, ref_id: int, values: Sequence[object]) -> tuple[RawExpression, ...]:
        """The sentences of a ref, with the ids that `refs(unc).p` gives them."""
        found = []
        for number, value in enumerate(values):
            sentence = self.part(value, ReferSentence, SENTENCE_KEYS)
            text = getattr(sentence, self.settings.text)
            if text is None:
                raise DataError(f"a sentence has no {self.settings.text!r}", where=self.where)
            sent_id = number if sentence.sent_id is None else sentence.sent_id
            found.append(RawExpression(f"{ref_id}/{sent_id}", text))
        return tuple(found)

    def record(
        self,
        image: RawImage,
        expressions: Sequence[RawExpression],
        regions: Sequence[RawRegion],
        *,
        kind: str | None = None,
    ) -> RawRecord:
        """A record of the row."""
        return RawRecord(self.split, image, tuple(expressions), tuple(regions), self.where, kind)


def box_xyxy(numbers: Sequence[float] | None, form: BoxFormat, where: str) -> BoxXYXY:
    """Four numbers in pixels as two corners.

    Raises:
        DataError: they are not four, or they are fractions of the image.
    """
    if numbers is None or len(numbers) != NUMBERS_OF_A_BOX:
        raise DataError(f"the box is not four numbers but {excerpt(numbers)}", where=where)
    first, second, third, fourth = map(float, numbers)
    if any(numbers) and are_fractions([numbers]):
        raise DataError("the box is in fractions of the image", where=where, hint="give it in pixels")
    box = (first, second, third, fourth)
    return box if form == "xyxy" else xywh_to_xyxy(box)


def segmentation(value: object) -> bytes | RLE | None:
    """A segmentation of plain values, or its JSON, in the form that records have.

    Raises:
        DataError: it is of another kind.
    """
    if value is None or value == "" or value == []:
        return None
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, dict):
        return msgspec.json.encode(_with_text(value))
    if isinstance(value, list):
        return msgspec.json.encode([_with_text(one) if isinstance(one, dict) else one for one in value])
    raise DataError(f"the mask is not a COCO segmentation but {excerpt(value)}")


def _with_text(run_lengths: Mapping[str, Any]) -> dict[str, Any]:
    """Run lengths whose `counts` may be bytes, as pycocotools returns them."""
    counts = run_lengths.get("counts")
    return {**run_lengths, "counts": counts.decode("latin-1")} if isinstance(counts, bytes) else dict(run_lengths)
