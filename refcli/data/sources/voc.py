"""Pascal VOC: an XML file per image in `Annotations`, and the images of a split in `ImageSets/Main/<split>.txt`.

The development kit gives the first and last pixels of a box, counted from 1 as in MATLAB: its `VOCevaldet.m` takes
`xmax - xmin + 1` as the width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal
from xml.etree.ElementTree import Element

from refcli.config.schema import Settings
from refcli.data.reading.archives import is_archive, list_files, open_archive, read_file
from refcli.data.reading.streams import read_lines
from refcli.data.reading.xml_files import parse_xml
from refcli.data.sources.image_names import named_image
from refcli.data.sources.known_keys import KeyLog, KnownKeys, excerpt
from refcli.data.sources.labels import LabelledImage, LabelToolSettings
from refcli.data.sources.record import Problems, RawRecord, RawRegion, Source
from refcli.data.sources.rows import Rejections, valid_side, whole_number
from refcli.errors import DataError

ANNOTATIONS, IMAGE_SETS = "Annotations", "ImageSets"
SETS = "sets"
"""The role of `ImageSets`."""
MAX_FILE_BYTES = 16 << 20
_MAIN = "Main"
_SPLITS = ("train", "val", "test")
_ALL = "trainval"
"""The list of both train and val; it is read as a split only where there is no train."""
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_FIRST_PIXEL = 1


class VocSettings(LabelToolSettings):
    """Options of the Pascal VOC reader."""

    boxes: Literal["pixels", "edges"] = "pixels"
    """The meaning of the numbers. `pixels`: the first and last pixel, counted from 1, as the development kit defines;
    `edges`: continuous coordinates from 0, which some tools write."""


_IMAGE_KEYS = KnownKeys(
    "annotation",
    frozenset({"filename", "size", "object"}),
    frozenset({"folder", "path", "source", "segmented", "owner", "imagename", "database"}),
)
_OBJECT_KEYS = KnownKeys(
    "object",
    frozenset({"name", "bndbox", "difficult"}),
    frozenset({"pose", "truncated", "occluded", "part", "actions", "point"}),
    has_box=True,
)


def read_voc(files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems) -> Iterator[RawRecord]:
    """Yield the records of every image, split by split; see `Reader` and `labelled_records`.

    A `difficult` object is a target, but also `is_crowd`: others of its class may be unlabelled.

    Args:
        files: split -> a folder (or archive) of XML files, or the folder with `Annotations` in it; optionally `sets`,
            the folder `ImageSets`, whose lists then name the splits.
        settings: a `VocSettings`.
        dataset: prefix of the keys of images that are not COCO's.
        problems: collects `broken_file`, `broken_object` and its consequences (see `LabelledImage.records`),
            `image_of_no_split` and `image_without_annotation` (in a list). Reported and kept: `unused_key` and
            `box_counted_from_0`, a box at 0 with boxes of `pixels`.

    Raises:
        DataError: there are no XML files, or none can be used.
    """
    assert isinstance(settings, VocSettings)
    for split, given in files.items():
        if split == SETS:
            continue
        folder = given / ANNOTATIONS if (given / ANNOTATIONS).is_dir() else given
        log = KeyLog(folder.name, problems)
        rejected, objects = Rejections(problems, "broken_file"), Rejections(problems, "broken_object")
        num_good = 0
        for name, file, own_split in _annotations(folder, files.get(SETS), split, problems):
            where = f"{folder.name}/{PurePosixPath(file).name}: annotation"
            try:
                root = parse_xml(
                    read_file(folder, file, max_bytes=MAX_FILE_BYTES), where=where, max_bytes=MAX_FILE_BYTES
                )
                labelled = _image(root, name, own_split, dataset, settings, log, where)
            except DataError as error:
                rejected.add(DataError(error.message, where=where, hint=error.hint), where)
                continue
            for number, element in enumerate(root.findall("object"), 1):
                place = f"{where}, object {number}"
                parse = partial(_region, element, settings, log, place)
                labelled.add(parse, element.findtext("name"), objects, place)
            num_good += 1
            yield from labelled.records(settings, problems)
        if not num_good:
            rejected.raise_first()
            raise DataError("no image of the lists has an annotation", where=str(folder), hint="check ImageSets/Main")
        log.finish()


def sniff_voc(path: Path) -> bool:
    """Whether this is a folder or archive of XML files of images with objects, or a folder with `Annotations`."""
    folder = path / ANNOTATIONS if (path / ANNOTATIONS).is_dir() else path
    try:
        if (folder.parent / "Sentences").is_dir() or _has_sentences(folder):  # Flickr30k Entities
            return False
        first = next(iter(list_files(folder, ".xml").values()))
        root = parse_xml(read_file(folder, first, max_bytes=MAX_FILE_BYTES), where=first, max_bytes=MAX_FILE_BYTES)
    except (DataError, OSError):
        return False
    return root.tag == "annotation" and root.find("size") is not None


def _has_sentences(path: Path) -> bool:
    if path.is_dir() or not is_archive(path):
        return False
    with open_archive(path) as archive:
        return any("Sentences" in name.split("/") for name in archive.names())


def _annotations(folder: Path, sets: Path | None, split: str, problems: Problems) -> Iterator[tuple[str, str, str]]:
    """Name, file and split of every annotation."""
    files = list_files(folder, ".xml")
    lists = {} if sets is None else _lists(sets)
    if not lists:
        yield from ((name, file, split) for name, file in files.items())
        return
    listed = set()
    for own_split, path in lists.items():
        for number, line in read_lines(path):
            name = line.split()[0]
            listed.add(name)
            if name in files:
                yield name, files[name], own_split
            else:
                problems.add("image_without_annotation", f"{path.name}: line {number}", excerpt(name))
    for name in files.keys() - listed:
        problems.add("image_of_no_split", f"{folder.name}/{name}.xml: annotation")


def _lists(sets: Path) -> dict[str, Path]:
    """Split -> the list of its images."""
    folder = sets / _MAIN if (sets / _MAIN).is_dir() else sets
    splits = _SPLITS if (folder / "train.txt").is_file() else (*_SPLITS, _ALL)
    return {split: path for split in splits if (path := folder / f"{split}.txt").is_file()}


def _image(
    root: Element, name: str, split: str, dataset: str, settings: VocSettings, log: KeyLog, where: str
) -> LabelledImage:
    log.check(_IMAGE_KEYS, {str(part.tag): part.text for part in root}, where)
    size = root.find("size")
    width, height = (
        None if size is None else valid_side(whole_number(size.findtext(side, "").strip()))
        for side in ("width", "height")
    )
    file_name = root.findtext("filename", "").strip() or f"{name}.jpg"
    if not PurePosixPath(file_name).suffix:
        file_name += ".jpg"
    image = named_image(file_name, dataset=dataset, width=width, height=height, origin=settings.images)
    return LabelledImage(image, name, split, where)


def _region(element: Element, settings: VocSettings, log: KeyLog, where: str) -> RawRegion:
    """The region of an object.

    Raises:
        DataError: it has no upright box, or a number cannot be read.
    """
    log.check(_OBJECT_KEYS, {str(part.tag): part.text for part in element}, where)
    box = element.find("bndbox")
    if box is None:
        raise DataError("it has no bndbox", where=where)
    left, top, right, bottom = (_number(box.findtext(side), side, where) for side in _SIDES)
    if settings.boxes == "pixels":
        if min(left, top) < _FIRST_PIXEL:
            log.problems.add("box_counted_from_0", where, f"{left:g}, {top:g}: see --set boxes=edges")
        left, top = max(left - _FIRST_PIXEL, 0.0), max(top - _FIRST_PIXEL, 0.0)
    is_difficult = (element.findtext("difficult") or "0").strip() not in ("0", "", "false", "False")
    return RawRegion((left, top, right, bottom), is_crowd=is_difficult)


def _number(text: str | None, side: str, where: str) -> float:
    try:
        return float(text or "")
    except ValueError as error:
        raise DataError(f"{side} is {excerpt(text)!r}", where=where) from error


SOURCE = Source(
    description="Pascal VOC: a folder of XML files (Annotations), optionally with ImageSets/Main/<split>.txt",
    read=read_voc,
    settings=VocSettings,
    files={"*": (), SETS: (IMAGE_SETS,)},
    sniff=sniff_voc,
    optional=frozenset({SETS}),
)
