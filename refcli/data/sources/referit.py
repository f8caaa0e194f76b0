"""ReferItGame (refclef, Berkeley splits) in the JSON files of Hu et al.: boxes, expressions by split, image sizes."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from refcli.config.schema import Settings
from refcli.contracts.example import RLE
from refcli.data.reading.archives import list_files, read_file
from refcli.data.reading.json_files import parse_json, read_json
from refcli.data.reading.streams import first_bytes, read_lines
from refcli.data.sources.image_names import saiapr_image
from refcli.data.sources.known_keys import excerpt
from refcli.data.sources.record import LazyMask, Problems, RawExpression, RawRecord, RawRegion, Source
from refcli.data.sources.rows import UNREADABLE_BOX, UNREADABLE_VALUE, Rejections, valid_side
from refcli.errors import DataError
from refcli.geometry.boxes import BoxXYXY
from refcli.geometry.masks import encode_mask

SPLITS = ("train", "val", "test")
MASK_VARIABLE = "segimg_t"
MAX_MASK_BYTES = 16 << 20
"""Maximum bytes of one mask file; those of ReferItGame have a few kilobytes."""
MAX_MASK_PIXELS = 64_000_000
"""Maximum elements of a mask, against small files that inflate to enormous arrays; images have 480 x 360 pixels."""
MISSING_IMAGES = frozenset({"19579", "17975", "19575"})
"""Images that REFER's refclef lacks; without them the splits have the 54,127 / 5,842 / 60,103 expressions of
TransVG and OneRef."""
_REGION = re.compile(r"([0-9]{1,18})_[0-9]{1,18}")
_FIRST_BOX = re.compile(rb'\s*\{\s*"[0-9]+_[0-9]+"\s*:\s*(?!\[\s*")[^\s]')
_SNIFFED_BYTES = 512


class ReferitSettings(Settings):
    """Options of the ReferItGame reader."""

    inclusive_boxes: bool = True
    """Whether the far edges of the boxes name the last pixel of the object; the reader then adds one pixel. False takes
    the numbers as edges, as TransVG and OneRef do: the boxes are one pixel short."""
    drop_missing_images: bool = False
    """Whether to leave out the expressions of the three images that REFER's refclef lacks."""


def read_referit(
    files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
) -> Iterator[RawRecord]:
    """Yield one record per region, split by split; see `Reader`.

    Args:
        files: `boxes`, one or more of `train`, `val`, `test`; optionally `sizes`, `masks` (ReferItGame's `mask` folder
            or a zip of it), and the splits' lists of images.
        settings: a `ReferitSettings`.
        dataset: unused: the image keys are SAIAPR's.
        problems: collects `known_missing_image` (one per expression), `region_without_box`, `unreadable_box`,
            `region_without_expression`, `broken_row`, `mask_missing`, `unreadable_value` (a size).
    """
    assert isinstance(settings, ReferitSettings)
    splits = [split for split in SPLITS if split in files]
    if not splits:
        raise DataError(
            "there are boxes but no expressions",
            where=str(files["boxes"]),
            hint="put referit_query_train.json, referit_query_val.json or referit_query_test.json beside it",
        )
    reading = _Reading(
        settings,
        problems,
        boxes=read_json(files["boxes"], dict[str, msgspec.Raw]),
        sizes=read_json(files["sizes"], dict[str, msgspec.Raw]) if "sizes" in files else {},
        masks=MatMasks.find(files["masks"]) if "masks" in files else None,
        split_of_image={},
    )
    for split in splits:
        yield from reading.records(split, files[split], _listed_images(files.get(f"{split}_images")))


@dataclass(frozen=True)
class _Reading:
    """The state that all splits share."""

    settings: ReferitSettings
    problems: Problems
    boxes: Mapping[str, msgspec.Raw]
    sizes: Mapping[str, msgspec.Raw]
    masks: MatMasks | None
    split_of_image: dict[str, str]

    def records(self, split: str, path: Path, listed: frozenset[str] | None) -> Iterator[RawRecord]:
        rejected = Rejections(self.problems)
        num_good = 0
        for region, given in read_json(path, dict[str, msgspec.Raw]).items():
            where = f"{path.name}: region {excerpt(region)}"
            try:
                image = _image_of(region, where)
                texts = parse_json(given, list[str], where=where)
            except DataError as error:
                rejected.add(error, where)
                continue
            num_good += 1
            self._check_split(image, split, listed, where)
            yield from self._record(region, image, texts, split, where)
        if not num_good:
            rejected.raise_first()

    def _check_split(self, image: str, split: str, listed: frozenset[str] | None, where: str) -> None:
        first = self.split_of_image.setdefault(image, split)
        if first != split:
            raise DataError(f"image {image} is in {first} and in {split}", where=where)
        if listed is not None and image not in listed:
            raise DataError(f"image {image} is not in the list of images of {split}", where=where)

    def _record(self, region: str, image: str, texts: list[str], split: str, where: str) -> Iterator[RawRecord]:
        if self.settings.drop_missing_images and image in MISSING_IMAGES:
            for text in texts:
                self.problems.add("known_missing_image", where, text)
            return
        if not texts:
            self.problems.add("region_without_expression", where)
            return
        given = self.boxes.get(region)
        if given is None:
            self.problems.add("region_without_box", where, f"{len(texts)} expressions")
            return
        try:
            box = parse_json(given, tuple[float, float, float, float], where=where)
        except DataError as error:
            self.problems.add(UNREADABLE_BOX, where, error.message)
            return
        mask = self.masks.mask(region) if self.masks else None
        if self.masks and mask is None:
            self.problems.add("mask_missing", where)
        width, height = self._size(image)
        yield RawRecord(
            split=split,
            image=saiapr_image(image, width=width, height=height),
            expressions=tuple(RawExpression(f"{region}/{number}", text) for number, text in enumerate(texts)),
            regions=(RawRegion(_edges(box, self.settings.inclusive_boxes), mask, f"saiapr:{region}"),),
            where=where,
        )

    def _size(self, image: str) -> tuple[int | None, int | None]:
        given = self.sizes.get(f"{image}.jpg")
        if given is None:
            return None, None
        try:
            width, height = parse_json(given, tuple[int, int], where=image)
        except DataError as error:
            self.problems.add(UNREADABLE_VALUE, f"size of {image}.jpg", error.message)
            return None, None
        return valid_side(width), valid_side(height)


def sniff_referit(path: Path) -> bool:
    """Whether a file starts as `referit_bbox.json` does: `{"<image>_<region>":` and no list of texts after it."""
    return _FIRST_BOX.match(first_bytes(path, _SNIFFED_BYTES)) is not None


def _edges(box: BoxXYXY, is_inclusive: bool) -> BoxXYXY:
    extra = 1.0 if is_inclusive else 0.0
    return box[0], box[1], box[2] + extra, box[3] + extra


def _image_of(region: str, where: str) -> str:
    match = _REGION.fullmatch(region)
    if match is None:
        raise DataError(f"{excerpt(region)!r} is not <image>_<region>, two numbers", where=where)
    return match[1]


def _listed_images(path: Path | None) -> frozenset[str] | None:
    if path is None:
        return None
    return frozenset(text.strip().removesuffix(".jpg") for _, text in read_lines(path))


@dataclass(frozen=True)
class MatMasks:
    """The mask files of a folder or archive."""

    source: Path
    names: Mapping[str, str]
    """Region -> name inside `source`."""

    @classmethod
    def find(cls, path: Path) -> MatMasks:
        """List the masks in ReferItGame's `mask` folder, in its parent folder, or in an archive of either.

        Raises:
            DataError: there are no masks.
        """
        source = path / "mask" if (path / "mask").is_dir() else path
        return cls(source, list_files(source, ".mat"))

    def mask(self, region: str) -> LazyMask | None:
        """A function that reads the region's mask; None if it has no file."""
        name = self.names.get(region)
        return None if name is None else partial(read_mat_mask, self.source, name)


def read_mat_mask(source: Path, name: str) -> RLE:
    """The mask in one MATLAB file: the object is where `segimg_t` is 0.

    Raises:
        DataError: the file is broken, or `segimg_t` is missing or is not a matrix of numbers.
    """
    where = f"{source}: {name}"
    values = _matrix(read_file(source, name, max_bytes=MAX_MASK_BYTES), where)
    if values.dtype.kind not in "biuf":
        raise DataError(f"{MASK_VARIABLE} does not hold numbers but {values.dtype}", where=where)
    return encode_mask(values == 0)


def _matrix(data: bytes, where: str) -> np.ndarray[Any, Any]:
    from scipy.io import loadmat, whosmat

    try:
        shape = {variable: shape for variable, shape, _ in whosmat(io.BytesIO(data))}.get(MASK_VARIABLE)
        is_of_image_size = shape is not None and len(shape) == 2 and 0 < math.prod(shape) <= MAX_MASK_PIXELS
        found = loadmat(io.BytesIO(data), variable_names=[MASK_VARIABLE]) if is_of_image_size else {}
    except Exception as error:  # scipy raises IndexError, TypeError, zlib.error and others for broken bytes
        raise DataError(f"this MATLAB file cannot be read: {error}", where=where) from error
    if shape is None:
        raise DataError(f"there is no variable {MASK_VARIABLE} in it", where=where)
    if not is_of_image_size:
        raise DataError(f"{MASK_VARIABLE} is not a matrix of image size but has the shape {shape}", where=where)
    return np.asarray(found[MASK_VARIABLE])


SOURCE = Source(
    description="ReferItGame in the JSON files of Hu et al. (referit_bbox.json and its neighbours)",
    read=read_referit,
    settings=ReferitSettings,
    files={
        "boxes": ("referit_bbox.json",),
        "train": ("referit_query_train.json",),
        "val": ("referit_query_val.json",),
        "test": ("referit_query_test.json",),
        "sizes": ("referit_imsize.json",),
        "train_images": ("referit_train_imlist.txt",),
        "val_images": ("referit_val_imlist.txt",),
        "test_images": ("referit_test_imlist.txt",),
        "masks": ("mask", "mask.zip", "mask.tar", "ReferitData.zip"),
    },
    sniff=sniff_referit,
    optional=frozenset({*SPLITS, "sizes", "train_images", "val_images", "test_images", "masks"}),
)
