"""YOLO folders of ultralytics: `data.yaml`, images, and a label file per image with boxes or polygons.

A line of a label file is `class cx cy w h` or `class x y x y x y ...` in fractions of the image as it is displayed. The
label file of `.../images/a.jpg` is `.../labels/a.txt`; the rules are those of ultralytics' `img2label_paths` and
`verify_image_label`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec

from refcli.config.schema import Settings
from refcli.config.yaml_text import parse_yaml
from refcli.data.reading.images import probe
from refcli.data.reading.json_files import convert
from refcli.data.reading.streams import read_bytes, read_lines, text_start
from refcli.data.sources.image_names import named_image
from refcli.data.sources.known_keys import KeyLog, KnownKeys, excerpt
from refcli.data.sources.labels import LabelledImage, LabelToolSettings, outlined_region
from refcli.data.sources.record import Problems, RawRecord, RawRegion, Source
from refcli.data.sources.rows import NUMBERS_OF_A_BOX, Rejections, comparable_id
from refcli.errors import DataError, ImageError

DATA, ROOT = "data", "root"
DATA_FILE, CLASSES_FILE = "data.yaml", "classes.txt"
SPLITS = ("train", "val", "test")
IMAGES, LABELS = "images", "labels"
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_TOLERANCE = 0.01
"""Fraction of the image by which coordinates may leave it, as in ultralytics."""
_CORNERS = 4
_FORM = "a line is `class cx cy w h` or `class x y x y x y ...`, with fractions of the image"
_HAS_NAMES = re.compile(rb"^names\s*:", re.MULTILINE)
_HAS_SPLIT = re.compile(rb"^(?:train|val|test)\s*:", re.MULTILINE)


class YoloSettings(LabelToolSettings):
    """Options of the YOLO reader."""

    polygons: Literal["masks", "boxes"] = "masks"
    """How polygons are read. `masks`: as outlines of masks; `boxes`: as the boxes around them, for oriented boxes."""


class _Data(msgspec.Struct):
    names: list[str] | dict[int, str]
    path: str | None = None
    train: str | list[str] | None = None
    val: str | list[str] | None = None
    test: str | list[str] | None = None
    nc: int | None = None
    kpt_shape: list[int] | None = None

    def entries(self, split: str) -> list[str]:
        """The folders and lists of images of a split."""
        value: str | list[str] | None = getattr(self, split)
        return [value] if isinstance(value, str) else value or []


_KEYS = KnownKeys(
    "file",
    frozenset(_Data.__struct_fields__),
    frozenset({"author", "channels", "date", "download", "flip_idx", "kpt_names", "license", "roboflow", "version"}),
)


def read_yolo(
    files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
) -> Iterator[RawRecord]:
    """Yield the records of every image with a label file; see `Reader` and `labelled_records`.

    The size of an image is read from its file. Of a pose data set (`kpt_shape`) only the boxes are read.

    Args:
        files: `data`, the file `data.yaml` or its folder, or a folder with `classes.txt`, `images` and `labels`, as
            labelling tools write it, which is read as the split train; optionally `root`, the folder that the paths in
            `data.yaml` start from, by default its `path` if that is below its folder, else its folder.
        settings: a `YoloSettings`.
        dataset: prefix of the keys of images that are not COCO's.
        problems: collects `broken_line` and its consequences (see `LabelledImage.records`), `split_without_images`,
            `missing_image` (of a list), `unreadable_image`, `image_without_label_file` and `repeated_image` (in an
            earlier split); reported and kept: `unused_key`, `repeated_object` (read once) and
            `polygons_of_four_corners` (if there are no others).

    Raises:
        DataError: `data.yaml` is not of this form, names a folder outside the root, or there is no image.
    """
    assert isinstance(settings, YoloSettings)
    yield from _Reading(files, settings, dataset, problems).records()


def sniff_yolo(path: Path) -> bool:
    """Whether this is a `data.yaml` with names and splits, or a folder with one or with `classes.txt`."""
    if path.is_dir() and not (path / DATA_FILE).exists():
        return all((path / name).exists() for name in (CLASSES_FILE, IMAGES, LABELS))
    start = text_start(path / DATA_FILE if path.is_dir() else path)
    return not start.startswith((b"{", b"[", b"<")) and all(
        pattern.search(start) for pattern in (_HAS_NAMES, _HAS_SPLIT)
    )


class _Reading:
    """The state of one data set while it is read."""

    def __init__(self, files: Mapping[str, Path], settings: YoloSettings, dataset: str, problems: Problems) -> None:
        given = files[DATA]
        self._file = next((given / name for name in (DATA_FILE, CLASSES_FILE) if (given / name).is_file()), given)
        self._settings, self._dataset, self._problems = settings, dataset, problems
        self._data = self._read_data()
        names = self._data.names
        self._names = names if isinstance(names, dict) else dict(enumerate(names))
        self._root = (files.get(ROOT) or self._default_root()).absolute()
        self._rejected = Rejections(problems, "broken_line")
        self._num_polygons = self._num_of_four = 0

    def records(self) -> Iterator[RawRecord]:
        split_of: dict[Path, str] = {}
        for split in SPLITS:
            images = [image for entry in self._data.entries(split) for image in self._images(entry)]
            if self._data.entries(split) and not images:
                self._problems.add(
                    "split_without_images", f"{self._file.name}: {split}", str(getattr(self._data, split))
                )
            for image in images:
                if split_of.setdefault(image, split) != split:
                    self._problems.add("repeated_image", f"{self._place(image)}: {split}", split_of[image])
                    continue
                yield from self._records_of(image, split)
        if not split_of:
            raise DataError(
                "there are no images in train, val or test",
                where=str(self._file),
                hint="put the images where it names them, or give their folder with --with root=FOLDER",
            )
        if self._num_polygons and self._num_of_four == self._num_polygons:
            self._problems.add(
                "polygons_of_four_corners",
                f"{self._file.name}: labels",
                f"all {self._num_polygons:,}; if they are oriented boxes: --set polygons=boxes",
            )

    def _read_data(self) -> _Data:
        where = str(self._file)
        if self._file.name == CLASSES_FILE:
            return _Data({number - 1: name.strip() for number, name in read_lines(self._file)}, train=IMAGES)
        text = read_bytes(self._file).decode("utf-8", "replace")
        values = parse_yaml(text, what="data.yaml", where=where, error=DataError, numbered_keys=True)
        if not isinstance(values, dict):
            raise DataError("data.yaml is not a mapping of keys to values", where=where)
        log = KeyLog(self._file.name, self._problems)
        log.check(_KEYS, values, where)
        log.finish()
        data = convert(values, _Data, where=where)
        if data.nc not in (None, len(data.names)):
            raise DataError(f"nc is {data.nc}, but there are {len(data.names)} names", where=where)
        return data

    def _default_root(self) -> Path:
        own = self._file.parent
        stated = _below(own, self._data.path or ".")
        return stated if stated is not None and stated.is_dir() else own

    def _images(self, entry: str) -> list[Path]:
        """The images of a folder or list."""
        # Roboflow's paths start one folder too high, which ultralytics accepts
        inside = [_below(self._root, one) for one in (entry, entry.removeprefix("../"))]
        found = next((path for path in inside if path is not None and path.exists()), None)
        if found is None:
            if not any(inside):
                raise DataError(
                    f"{excerpt(entry)!r} is not in the folder {self._root}",
                    where=str(self._file),
                    hint="give the folder that its paths start from with --with root=FOLDER",
                )
            return []
        if found.is_dir():
            files = (path for path in found.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
            return sorted(files)
        return list(self._listed(found)) if found.suffix == ".txt" else [found]

    def _listed(self, file: Path) -> Iterator[Path]:
        """The images in a list of paths; `./` stands for the folder of the list."""
        for number, line in read_lines(file):
            name = line.strip()
            image = _below(self._root, str((file.parent if name.startswith("./") else self._root) / name))
            if image is not None and image.is_file():
                yield image
            else:
                self._problems.add("missing_image", f"{file.name}: line {number}", excerpt(name))

    def _place(self, path: Path) -> str:
        return Path(os.path.relpath(path, self._root)).as_posix()

    def _records_of(self, image: Path, split: str) -> Iterator[RawRecord]:
        name = self._place(image)
        where = f"{self._file.name}: {name}"
        labels = label_file(image)
        if not labels.is_file():
            self._problems.add("image_without_label_file", where, self._place(labels))
            return
        try:
            width, height = probe(image).size
            raw = named_image(name, dataset=self._dataset, width=width, height=height, origin=self._settings.images)
            lines = list(read_lines(labels))
        except (ImageError, DataError) as error:
            self._problems.add("unreadable_image", where, error.message)
            return
        labelled = LabelledImage(raw, name, split, where)
        seen: set[tuple[str, ...]] = set()
        for number, line in lines:
            place = f"{self._place(labels)}: line {number}"
            fields = tuple(line.split())
            if fields in seen:
                self._problems.add("repeated_object", place, excerpt(line))
                continue
            seen.add(fields)
            index = comparable_id(fields[0])
            label = self._names.get(index) if isinstance(index, int) else None
            if label is None:
                message = f"class {excerpt(fields[0])} is not one of the {len(self._names)} names"
                self._rejected.add(DataError(message, where=place), place)
                labelled.broken.add(None)
                continue
            labelled.add(partial(self._region, fields, width, height, place), label, self._rejected, place)
        yield from labelled.records(self._settings, self._problems)

    def _region(self, fields: Sequence[str], width: int, height: int, where: str) -> RawRegion:
        numbers = self._fractions(fields[1:], where)
        if len(numbers) == NUMBERS_OF_A_BOX:
            middle_x, middle_y, wide, tall = numbers
            return RawRegion(
                (
                    (middle_x - wide / 2) * width,
                    (middle_y - tall / 2) * height,
                    (middle_x + wide / 2) * width,
                    (middle_y + tall / 2) * height,
                )
            )
        points = [(x * width, y * height) for x, y in zip(numbers[::2], numbers[1::2], strict=True)]
        region = outlined_region(points, where)
        if self._settings.polygons == "boxes":
            return RawRegion(region.box_xyxy)
        self._num_polygons += 1
        self._num_of_four += len(points) == _CORNERS
        return region

    def _fractions(self, fields: Sequence[str], where: str) -> list[float]:
        """The numbers of a line after the class, without key points."""
        try:
            numbers = [float(field) for field in fields]
        except ValueError as error:
            raise DataError("a number cannot be read", where=where, hint=_FORM) from error
        if self._data.kpt_shape is not None:
            numbers = numbers[:NUMBERS_OF_A_BOX]
        if len(numbers) < NUMBERS_OF_A_BOX or len(numbers) % 2:
            is_predicted = len(numbers) == NUMBERS_OF_A_BOX + 1
            hint = "the last may be a confidence: predictions are not read" if is_predicted else _FORM
            raise DataError(f"there are {len(numbers)} numbers after the class", where=where, hint=hint)
        if not all(-_TOLERANCE <= number <= 1 + _TOLERANCE for number in numbers):
            raise DataError("its numbers are not fractions of the image", where=where, hint=_FORM)
        return numbers


def label_file(image: Path) -> Path:
    """The label file of an image: in the folder `labels` instead of the last folder `images`, or beside the image."""
    parts = list(image.parts)
    if IMAGES in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index(IMAGES)] = LABELS
    return Path(*parts).with_suffix(".txt")


def _below(folder: Path, name: str) -> Path | None:
    """A path that starts from a folder, or None if it leads out of it."""
    path = Path(os.path.normpath(folder / name.replace("\\", "/")))
    return path if path.is_relative_to(os.path.normpath(folder)) else None


SOURCE = Source(
    description="YOLO: data.yaml, or its folder, with images and label files of boxes or polygons",
    read=read_yolo,
    settings=YoloSettings,
    files={DATA: (DATA_FILE,), ROOT: ()},
    sniff=sniff_yolo,
    optional=frozenset({ROOT}),
    reads_folder=True,
)
