"""Images in a column of a Parquet file: as bytes, or as the names of files beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from refcli.data.sources.image_names import ImageOrigin, named_image
from refcli.data.sources.parquet.files import ParquetFile, is_text
from refcli.data.sources.record import RawImage
from refcli.errors import DataError

MAX_IMAGE_BYTES = 200_000_000
IMAGES_AT_A_TIME = 16
"""Images in memory at the same time."""
_BYTES, _PATH = "bytes", "path"
"""The fields of an image as the Hugging Face library `datasets` writes it."""


@dataclass(frozen=True)
class ImageColumn:
    """A column of images, and how it holds them."""

    name: str
    bytes_at: str | None
    """Path of the column of bytes, such as `image.bytes`; None: there are only names."""
    path_at: str | None
    """Path of the column of names, such as `image.path`."""

    @classmethod
    def of(cls, schema: pa.Schema, name: str, where: str) -> ImageColumn:
        """Recognise the form of a column.

        Raises:
            DataError: it holds neither bytes, nor names, nor the two together.
        """
        kind = _plain(schema.field(name).type)
        if _is_bytes(kind):
            return cls(name, name, None)
        if is_text(kind):
            return cls(name, None, name)
        if pa.types.is_struct(kind):
            parts = {part.name: _plain(part.type) for part in kind}
            if _is_bytes(parts.get(_BYTES, pa.null())):
                has_path = is_text(parts.get(_PATH, pa.null()))
                return cls(name, f"{name}.{_BYTES}", f"{name}.{_PATH}" if has_path else None)
        raise DataError(
            f"the column {name!r} holds no images but {kind}",
            where=where,
            hint="images are bytes, file names, or a struct of bytes and path",
        )

    def path(self, value: object) -> str | None:
        """The name of the image in a row, given the row's value without its bytes."""
        name = value.get(_PATH) if isinstance(value, dict) else value
        return name if isinstance(name, str) else None


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


@dataclass
class StoredImages:
    """The bytes of the images of one file, read in file order, a few at a time; picklable.

    Reading the rows forwards reads each once; a row before the last one read starts its row group again.
    """

    file: Path
    column: str
    """Path of the column of bytes."""
    _group: int = field(default=-1, init=False)
    _start: int = field(default=0, init=False)
    _batch: pa.Array | None = field(default=None, init=False)
    _batches: Iterator[pa.RecordBatch] = field(default_factory=lambda: iter(()), init=False)

    def read(self, group: int, row: int) -> bytes | None:
        """The bytes in a row of a row group, both from 0; None if it has none.

        Raises:
            DataError: the file is damaged, or the image is larger than `MAX_IMAGE_BYTES`.
        """
        if self._batch is None or group != self._group or row < self._start:
            file = ParquetFile(self.file)
            self._batches = file.arrow_batches(group, [self.column], max_rows=IMAGES_AT_A_TIME)
            self._group, self._start, self._batch = group, 0, None
        while self._batch is None or row >= self._start + len(self._batch):
            self._start += 0 if self._batch is None else len(self._batch)
            batch = next(self._batches, None)
            if batch is None:
                self._batch = None
                raise DataError(f"row group {group + 1} has no row {row + 1}", where=str(self.file))
            self._batch = _leaf(batch.column(0))
        value = self._batch[row - self._start]
        if not value.is_valid:
            return None
        content = value.as_buffer()
        if content.size > MAX_IMAGE_BYTES:
            raise DataError(f"the image has {content.size:,} bytes", where=str(self.file))
        return bytes(content)

    def __reduce__(self) -> tuple[type[StoredImages], tuple[Path, str]]:
        return StoredImages, (self.file, self.column)


def _leaf(column: pa.Array) -> pa.Array:
    """The bytes of a column, or of the only field of a column of structs."""
    if pa.types.is_struct(column.type):
        column = column.flatten()[0]
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


@dataclass(frozen=True)
class RowImage:
    """The bytes of the image in one row; calling it reads them."""

    images: StoredImages
    group: int
    row: int

    def __call__(self) -> bytes:
        content = self.images.read(self.group, self.row)
        if content is None:
            raise DataError("the row has no image", where=str(self.images.file))
        return content


def image_beside(
    name: str | None,
    *,
    dataset: str,
    where: str,
    width: int | None = None,
    height: int | None = None,
    origin: ImageOrigin = "auto",
) -> RawImage:
    """The image of a row that names its file.

    Raises:
        DataError: there is no name, or it leads out of the image folder.
    """
    if not name:
        raise DataError("the row has neither an image to extract nor the name of an image file", where=where)
    return named_image(name, dataset=dataset, width=width, height=height, origin=origin)
