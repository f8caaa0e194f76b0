"""The Parquet reader: published layouts recognised by their columns, and any other by the names of its columns."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from refcli.config.schema import Settings
from refcli.data.sources.detect import refuse_foreign
from refcli.data.sources.known_keys import KeyLog, excerpt
from refcli.data.sources.parquet.files import ParquetFile, RowBatch, is_parquet, is_text, list_parquet, split_of
from refcli.data.sources.parquet.images import ImageColumn, RowImage, StoredImages
from refcli.data.sources.parquet.layouts import LAYOUTS, STORE_COLUMNS, Layout
from refcli.data.sources.parquet.mapping import EXAMPLE, mapped_layout
from refcli.data.sources.parquet.membership import INSTANCES, REFS, Members
from refcli.data.sources.parquet.row import ParquetSettings, RowContext
from refcli.data.sources.parquet.seen import SeenIds
from refcli.data.sources.record import Problems, RawExpression, RawRecord, Source
from refcli.data.sources.rows import Rejections, convert_row
from refcli.data.sources.split_names import split_in
from refcli.errors import DataError, UsageError

PARQUET = "parquet"
"""The role of a file or folder whose splits are in its columns or file names; other roles are splits."""
TRAIN = "train"
"""The split of rows without one."""
_USUAL_NAMES = {"validation": "val"}
"""Split of the Hub's file names -> the name that all other formats have."""
_SHOWN_COLUMNS = 20


def read_parquet(
    files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
) -> Iterator[RawRecord]:
    """Yield the records of all rows, in the order of file names and rows; see `Reader`.

    Args:
        files: `parquet` -> a file or a folder, or split -> file; optionally `refs` and `instances`: the rows of a split
            that `settings.splits` renames are then also given as `<split>_<author>` where the refs have their object.
        settings: a `ParquetSettings`.
        dataset: prefix of the keys of images that are not COCO's.
        problems: collects `broken_row`, `unused_key`, `repeated_id` (of a row; its number is appended),
            `read_as_train` (a file without a split), `split_of_two_papers` (lmms-lab's val, unless `settings.splits`
            renames it) and `ref_not_found`.

    Raises:
        DataError: a file is damaged, incomplete or part of a store, or none of its rows can be used.
        UsageError: its columns are of no known layout and are not named in the settings.
    """
    assert isinstance(settings, ParquetSettings)
    return _Reading(dataset, settings, problems, Members.read(files, problems)).records(files)


def read_image_names(
    files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
) -> Iterator[RawRecord]:
    """As `read_parquet`, without the records whose images are inside the files; no image is read for it."""
    assert isinstance(settings, ParquetSettings)
    return _Reading(dataset, settings, problems, None, reads_images=False).records(files)


@dataclass(frozen=True)
class _Columns:
    """The columns of one file."""

    file: ParquetFile
    layout: Layout
    image: ImageColumn | None
    stored: StoredImages | None
    """The images inside the file; None if there are none, or if they are not wanted."""
    may_lack_images: bool
    """Whether there are rows without an image inside."""
    read: tuple[str, ...]

    @classmethod
    def of(cls, path: Path, settings: ParquetSettings, keys: KeyLog) -> _Columns:
        """Decide which columns to read. Columns of unknown meaning are read if they hold plain values."""
        file = ParquetFile(path)
        schema = file.schema
        layout = _layout(schema, settings, str(path))
        image = None
        if layout.image is not None and layout.image in schema.names:
            image = ImageColumn.of(schema, layout.image, str(path))
        wanted = {*layout.keys.read, *(layout.fields or {}).values()}
        if settings.columns.split is not None:
            wanted.add(settings.columns.split)
        read = []
        for part in schema:
            if image is not None and part.name == image.name:
                read += [image.path_at] if image.path_at else []
            elif part.name in wanted or (part.name not in layout.keys.all and _is_plain(part.type)):
                read.append(part.name)
            elif part.name not in layout.keys.all:
                keys.check(layout.keys, {part.name: None}, f"{path.name}: columns")
        stored = None
        if image is not None and image.bytes_at is not None and settings.extract_images:
            stored = StoredImages(path, image.bytes_at)
        return cls(file, layout, image, stored, stored is None or file.has_nulls(stored.column), tuple(read))


def _is_plain(kind: pa.DataType) -> bool:
    """Whether a column holds numbers, texts or truth values, and not images or lists of any size."""
    is_number = pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return bool(is_number or is_text(kind))


def _layout(schema: pa.Schema, settings: ParquetSettings, where: str) -> Layout:
    names = set(schema.names)
    if settings.columns.expression is not None:
        return mapped_layout(settings, schema.names, where)
    if names >= STORE_COLUMNS:
        raise DataError(
            "this is a file of a refcli store, which is already prepared",
            where=where,
            hint="give the folder of the store to the other commands: --data STORE",
        )
    layout = next((layout for layout in LAYOUTS if layout.columns <= names), None)
    if layout is None:
        shown = ", ".join(schema.names[:_SHOWN_COLUMNS])
        raise UsageError(
            f"the columns are of no known layout: {shown}", where=where, hint=f"name the columns, e.g. {EXAMPLE}"
        )
    return layout


@dataclass
class _Reading:
    """The state of one data set while it is read."""

    dataset: str
    settings: ParquetSettings
    problems: Problems
    members: Members | None
    reads_images: bool = True
    ids: defaultdict[str, SeenIds] = field(default_factory=lambda: defaultdict(SeenIds))
    """Split -> the ids of its rows."""
    num_rows: Counter[str] = field(default_factory=Counter)
    """Split -> the rows of its files so far; under "" those of all files whose splits are in a column."""

    def records(self, files: Mapping[str, Path]) -> Iterator[RawRecord]:
        read: set[str] = set()
        for role, place in files.items():
            if role in (REFS, INSTANCES):
                continue
            for path in list_parquet(place):
                refuse_foreign(path, PARQUET)
                split = self.settings.split or (role if role != PARQUET else split_of(path) or split_in(path))
                read.add(split or TRAIN)
                yield from self._file(path, split)
        for split in sorted(read & self.settings.splits.keys()):
            if self.members is not None and (num_left := self.members.num_left(split)):
                self.problems.add("ref_not_found", f"{split}: refs", f"{num_left:,} of them are in no row")

    def _file(self, path: Path, found_split: str | None) -> Iterator[RawRecord]:
        keys = KeyLog(path.name, self.problems)
        rejected = Rejections(self.problems)
        columns = _Columns.of(path, self.settings, keys)
        split = found_split or TRAIN
        if found_split is None and self._split_column(columns.layout) is None:
            self.problems.add("read_as_train", path.name, "no column and no name states a split; --set split=NAME does")
        if not self.reads_images and not columns.may_lack_images:
            return
        counted = split if self._split_column(columns.layout) is None else ""
        num_good = 0
        for batch in columns.file.batches(columns.read):
            for index, row in enumerate(batch.rows):
                where = f"{path.name}: row {batch.number + index}"
                try:
                    if isinstance(row, DataError):
                        raise row
                    content = self._content(columns, batch, index)
                    if content is not None and not self.reads_images:
                        num_good += 1
                        continue
                    number = self.num_rows[counted] + batch.number + index
                    found = list(self._row(row, columns, content, number, split, where, keys))
                except DataError as error:
                    rejected.add(error, where)
                    continue
                num_good += 1
                yield from found
        self.num_rows[counted] += columns.file.num_rows
        keys.finish()
        if not num_good:
            rejected.raise_first()
        if split == columns.layout.mixed and split not in self.settings.splits:
            self.problems.add(
                "split_of_two_papers",
                path.name,
                f"scores on {split} are not comparable with any paper's; --set splits.{split}={split}_mixed renames it",
            )

    def _content(self, columns: _Columns, batch: RowBatch, index: int) -> RowImage | None:
        """The image inside a row; None if it has none."""
        if columns.stored is None:
            return None
        group, row = batch.group, batch.start + index
        if columns.may_lack_images and columns.stored.read(group, row) is None:
            return None
        return RowImage(columns.stored, group, row)

    def _row(
        self,
        row: dict[str, Any],
        columns: _Columns,
        content: RowImage | None,
        number: int,
        split: str,
        where: str,
        keys: KeyLog,
    ) -> Iterator[RawRecord]:
        layout, image = columns.layout, columns.image
        path = None
        if image is not None:
            path = image.path(row.get(image.name))
        keys.check(layout.keys, row, where)
        given = {name: row[column] for name, column in layout.fields.items()} if layout.fields else row
        values = convert_row(
            given, layout.row, where=where, problems=self.problems, needed=layout.row.__struct_fields__
        )
        stated = self._stated_split(row, layout) or split
        name = self.settings.splits.get(stated) or _USUAL_NAMES.get(stated, stated)
        context = RowContext(self.dataset, name, number, where, self.settings, self.problems, keys, content, path)
        records = list(layout.records(values, context))
        own_id = row.get(layout.id) if layout.id is not None else None
        if own_id is not None and not self.ids[name].add(own_id):
            self.problems.add("repeated_id", where, f"{layout.id} {excerpt(own_id)}")
            records = [_with_row_number(record, number) for record in records]
        for record in records:
            yield record
            if self.members is not None and stated in self.settings.splits:
                member = self.members.find(record, stated)
                if member is not None:
                    yield replace(record, split=member)

    def _stated_split(self, row: Mapping[str, Any], layout: Layout) -> str | None:
        """The split in a column."""
        column = self._split_column(layout)
        value = row.get(column) if column else None
        return value if isinstance(value, str) and value else None

    def _split_column(self, layout: Layout) -> str | None:
        """The column that states the splits of the rows; None if there is none, or if the settings state the split."""
        if self.settings.split is not None:
            return None
        return self.settings.columns.split if layout.fields else "split" if "split" in layout.keys.read else None


def _with_row_number(record: RawRecord, number: int) -> RawRecord:
    """The record with the number of its row in the ids of its expressions, which an earlier row of the split has."""
    expressions = tuple(RawExpression(f"{one.id}-{number}", one.text) for one in record.expressions)
    return replace(record, expressions=expressions)


SOURCE = Source(
    description="Parquet: RefCOCO's copies on the Hugging Face Hub, RefCOCO-M, Ref-L4, Ref-Adv-s, PBench, GroundingME, "
    "or any file whose columns are named with --set columns.NAME=COLUMN",
    read=read_parquet,
    settings=ParquetSettings,
    files={PARQUET: (), REFS: (), INSTANCES: ()},
    sniff=is_parquet,
    optional=frozenset({REFS, INSTANCES}),
    read_names=read_image_names,
)
