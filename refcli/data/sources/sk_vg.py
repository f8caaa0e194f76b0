"""SK-VG: expressions that need the story behind an image, which is given as text (Chen et al., CVPR 2023).

A record is `{"image_name", "knowledge": paragraph, "ref_exp", "bbox": {"x", "y", "width", "height"}}`, in pixels. x and
y are the *centre* of the box: the published loaders subtract half of its sides, although the name does not show it. A
file is the list of one split, or an object of lists by split (`annotations.json`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from refcli.config.schema import Settings
from refcli.data.sources.image_names import named_image
from refcli.data.sources.json_records import RowPlace, pixel_regions, read_rows
from refcli.data.sources.known_keys import KnownKeys
from refcli.data.sources.record import Problems, RawExpression, RawRecord, Source
from refcli.data.sources.rows import first_record_has
from refcli.geometry.boxes import BoxXYXY


class SkVgSettings(Settings):
    """Options of the SK-VG reader."""

    knowledge: bool = False
    """Whether the paragraph of knowledge follows the expression, as "expression. knowledge"; together they are longer
    than most models read."""


class _CentredBox(msgspec.Struct):
    x: float
    y: float
    width: float
    height: float

    @property
    def xyxy(self) -> BoxXYXY:
        """Its edges."""
        across, down = self.width / 2, self.height / 2
        return self.x - across, self.y - down, self.x + across, self.y + down


class _Row(msgspec.Struct):
    image_name: str
    ref_exp: str
    bbox: _CentredBox
    knowledge: str = ""


_KEYS = KnownKeys("record", frozenset(_Row.__struct_fields__), has_box=True)


def read_sk_vg(
    files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
) -> Iterator[RawRecord]:
    """Yield one record per row; see `Reader`. `files`: split -> file; `settings`: a `SkVgSettings`."""
    assert isinstance(settings, SkVgSettings)

    def records(row: _Row, place: RowPlace) -> tuple[RawRecord]:
        text = f"{row.ref_exp.rstrip('. ')}. {row.knowledge}" if settings.knowledge else row.ref_exp
        expression = RawExpression(str(place.number), text)
        image = named_image(row.image_name, dataset=dataset)
        regions = pixel_regions([row.bbox.xyxy], None, place.where)
        return (RawRecord(place.split, image, (expression,), regions, place.where),)

    return read_rows(files, _Row, _KEYS, records, problems, are_lists_by_split=True)


def sniff_sk_vg(path: Path) -> bool:
    """Whether a file starts with a record of SK-VG."""
    return first_record_has(path, b"image_name", b"knowledge", b"ref_exp")


SOURCE = Source(
    description="SK-VG: JSON list with image_name, knowledge, ref_exp and bbox",
    read=read_sk_vg,
    settings=SkVgSettings,
    files={"*": ()},
    sniff=sniff_sk_vg,
)
