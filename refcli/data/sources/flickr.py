"""Flickr30k Entities: phrases of captions, and boxes for the chains of phrases that name the same thing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree.ElementTree import Element

from refcli.config.schema import Settings
from refcli.data.reading.archives import is_archive, open_archive
from refcli.data.reading.streams import read_lines
from refcli.data.reading.xml_files import parse_xml
from refcli.data.sources.folders import list_files, read_file
from refcli.data.sources.known_keys import KeyLog, KnownKeys, excerpt
from refcli.data.sources.record import BoxXYXY, Problems, RawExpression, RawImage, RawRecord, RawRegion, Source
from refcli.data.sources.rows import number_of, side_of
from refcli.errors import DataError

SPLITS = ("train", "val", "test")
NOT_VISUAL = "0"
"""The chain of phrases that name nothing in the image; each of them stands for itself."""
MAX_BYTES = 4 << 20
"""Of one caption or annotation file; they have a few kilobytes."""


class FlickrSettings(Settings):
    """Choices of the Flickr30k Entities reader."""

    scene_boxes: bool = False
    """Give phrases for the whole scene, which have no box, one around the whole image."""
    inclusive_boxes: bool = True
    """The far edges of the XML name the last pixel of the object, so they are moved out by one pixel. False takes the
    numbers as edges, as TransVG and OneRef do: the boxes are one pixel short."""
    unrelated_captions: Literal["keep", "drop"] = "keep"
    """What to do with captions that do not belong to their image, as listed in UNRELATED_CAPTIONS."""


@dataclass(frozen=True)
class _Tree:
    """Where the caption and annotation files lie, by the image's number."""

    sentences_in: Path
    sentences: Mapping[str, str]
    annotations_in: Path
    annotations: Mapping[str, str]


def read_flickr(
    files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
) -> Iterator[RawRecord]:
    """Yield one record per phrase of a caption that has boxes, image by image; see `Reader`.

    Every box of the phrase's chain is a region of its own; the protocols differ in how they are merged.

    Args:
        files: `annotations` (annotations.zip, or the folder `Annotations`, or a folder of that and `Sentences`); one or
            more of `train`, `val`, `test` (lists of images); optionally `sentences` (the folder; without it the
            captions are in the zip, or beside `Annotations`) and `unrelated`.
        settings: a `FlickrSettings`.
        dataset: unused: the images' keys are those of Flickr30k.
        problems: one per phrase that is left out: `phrase_without_box_chain_0`, `phrase_without_box_scene`,
            `phrase_without_box_nobndbox`, `phrase_without_box` (its chain is not in the annotation) and
            `phrase_of_unrelated_caption`; and `malformed_caption`, `image_without_annotation` and
            `malformed_annotation` (every phrase of the image is left out). Kept are `caption_not_utf8` and
            `repeated_image` (twice in the list of one split; kept once).
    """
    assert isinstance(settings, FlickrSettings)
    unrelated = _unrelated(files, settings)
    images = _images_by_split(files, problems)
    tree = _open_tree(files["annotations"], files.get("sentences"))
    keys = KeyLog("Annotations", problems)
    for split, image_ids in images.items():
        for image_id in image_ids:
            if image_id not in tree.sentences or image_id not in tree.annotations:
                missing = "XML" if image_id in tree.sentences else "captions"
                problems.add("image_without_annotation", f"{files[split].name}: {image_id}", f"no {missing}")
                continue
            yield from _records(image_id, split, tree, settings, unrelated, keys)
    keys.finish()


def sniff_flickr(path: Path) -> bool:
    """Whether this is a folder or archive with `Sentences` and `Annotations`, or one of these two folders."""
    if path.is_dir():
        return any(all((root / name).is_dir() for name in ("Sentences", "Annotations")) for root in (path, path.parent))
    if not is_archive(path):
        return False
    try:
        with open_archive(path) as archive:
            folders = {name.rpartition("/")[0].rpartition("/")[2] for name in archive.names()}
    except DataError:
        return False
    return {"Sentences", "Annotations"} <= folders


def _records(
    image_id: str,
    split: str,
    tree: _Tree,
    settings: FlickrSettings,
    unrelated: frozenset[tuple[str, int]],
    keys: KeyLog,
) -> Iterator[RawRecord]:
    problems = keys.problems
    name = tree.annotations[image_id]
    try:
        data = read_file(tree.annotations_in, name, max_bytes=MAX_BYTES)
        captions = list(_lines(read_file(tree.sentences_in, tree.sentences[image_id], max_bytes=MAX_BYTES)))
        where = f"Annotations/{image_id}.xml"
        boxes = parse_boxes(data, image_id, where=where, inclusive=settings.inclusive_boxes, keys=keys)
    except DataError as error:
        problems.add("malformed_annotation", error.where or name, error.message)
        return
    image = RawImage(f"flickr30k:{image_id}", (f"{image_id}.jpg",), boxes.width, boxes.height)
    for sentence, line, is_utf8 in captions:
        where = f"Sentences/{image_id}.txt: line {sentence + 1}"
        if not is_utf8:
            problems.add("caption_not_utf8", where, "read as Latin-1")
        try:
            caption = parse_caption(line, where=where)
        except DataError as error:
            problems.add("malformed_caption", where, error.message)
            continue
        for number, phrase in enumerate(caption.phrases):
            text = caption.text[phrase.begin : phrase.end]
            if settings.unrelated_captions == "drop" and (image_id, sentence) in unrelated:
                problems.add("phrase_of_unrelated_caption", where, text)
                continue
            regions = _regions(phrase, boxes, image_id, settings.scene_boxes)
            if not regions:
                problems.add(_why_no_box(phrase, boxes), where, text)
                continue
            yield RawRecord(
                split=split,
                image=image,
                expressions=(RawExpression(f"{image_id}/{sentence}/{number}", text),),
                regions=regions,
                where=f"{where}, phrase {number + 1}",
                kind=phrase.types[0] if phrase.types else None,
            )


def _regions(
    phrase: CaptionPhrase, boxes: EntityBoxes, image_id: str, scenes_have_boxes: bool
) -> tuple[RawRegion, ...]:
    if phrase.chain == NOT_VISUAL:
        return ()
    if phrase.chain in boxes.regions:
        return boxes.regions[phrase.chain]
    if scenes_have_boxes and phrase.chain in boxes.scenes:
        if boxes.width is None or boxes.height is None:
            raise DataError(
                "a scene has no box around the image where the image's size is not told",
                where=f"Annotations/{image_id}.xml",
                hint="leave scene_boxes off",
            )
        box = (0.0, 0.0, float(boxes.width), float(boxes.height))
        return (RawRegion(box, source_id=f"flickr30k:{image_id}/{phrase.chain}/scene"),)
    return ()


def _why_no_box(phrase: CaptionPhrase, boxes: EntityBoxes) -> str:
    if phrase.chain == NOT_VISUAL:
        return "phrase_without_box_chain_0"
    if phrase.chain in boxes.scenes:
        return "phrase_without_box_scene"
    if phrase.chain in boxes.unboxed:
        return "phrase_without_box_nobndbox"
    return "phrase_without_box"


def _lines(data: bytes) -> Iterator[tuple[int, str, bool]]:
    """0-based line numbers, the lines that are not blank, and whether they are UTF-8; the others are Latin-1."""
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n")):
        if line.strip():
            try:
                yield number, line.decode("utf-8"), True
            except UnicodeDecodeError:
                yield number, line.decode("latin-1"), False


def _open_tree(path: Path, sentences: Path | None) -> _Tree:
    if path.is_dir():
        annotations = path / "Annotations" if (path / "Annotations").is_dir() else path
        boxes = list_files(annotations, ".xml")
        sentences = sentences or annotations.parent / "Sentences"
    else:
        annotations = path
        boxes = list_files(path, ".xml", folder="Annotations")
    if sentences is None:
        return _Tree(path, list_files(path, ".txt", folder="Sentences"), annotations, boxes)
    if not sentences.is_dir():
        raise DataError("the captions are missing", where=str(sentences), hint="unpack annotations.zip as a whole")
    return _Tree(sentences, list_files(sentences, ".txt"), annotations, boxes)


def _images_by_split(files: Mapping[str, Path], problems: Problems) -> dict[str, list[str]]:
    images: dict[str, list[str]] = {}
    split_of: dict[str, str] = {}
    for split in SPLITS:
        if split in files:
            for number, text in read_lines(files[split]):
                image_id = text.strip().removesuffix(".jpg")
                if split_of.get(image_id) == split:
                    problems.add("repeated_image", f"{files[split].name}: line {number}", image_id)
                    continue
                if image_id in split_of:
                    raise DataError(
                        f"image {image_id} is already in {split_of[image_id]}", where=f"{files[split]}: line {number}"
                    )
                split_of[image_id] = split
                images.setdefault(split, []).append(image_id)
    if not images:
        raise DataError(
            "no list says which images belong to a split",
            where=str(files["annotations"]),
            hint="put train.txt, val.txt or test.txt of Flickr30k Entities beside it",
        )
    return images


def _unrelated(files: Mapping[str, Path], settings: FlickrSettings) -> frozenset[tuple[str, int]]:
    """(image, 0-based sentence) of the captions to be dropped."""
    if settings.unrelated_captions == "keep":
        return frozenset()
    if "unrelated" not in files:
        raise DataError(
            "there is no list of the unrelated captions that are to be dropped",
            where=str(files["annotations"]),
            hint="put UNRELATED_CAPTIONS beside it, or set unrelated_captions to keep",
        )
    pairs = set()
    for number, text in read_lines(files["unrelated"]):
        if text.lstrip().startswith("#"):
            continue
        fields = text.split()
        sentence = number_of(fields[1]) if len(fields) == len(("image", "sentence")) else None
        if sentence is None:
            raise DataError(
                f"{excerpt(text)!r} is not <image> <sentence number>", where=f"{files['unrelated']}: line {number}"
            )
        pairs.add((fields[0], sentence - 1))
    return frozenset(pairs)


SOURCE = Source(
    description="Flickr30k Entities (annotations.zip or its folders Sentences and Annotations)",
    read=read_flickr,
    settings=FlickrSettings,
    files={
        "annotations": ("annotations.zip", "Annotations", "annotations"),
        "train": ("train.txt",),
        "val": ("val.txt",),
        "test": ("test.txt",),
        "sentences": ("Sentences",),
        "unrelated": ("UNRELATED_CAPTIONS", "UNRELATED_CAPTIONS.txt"),
    },
    sniff=sniff_flickr,
    optional=frozenset({*SPLITS, "sentences", "unrelated"}),
)


_OPENING = "[/EN#"
_INTEGER = re.compile(r"[+-]?[0-9]{1,15}")
_MAX_XML_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class CaptionPhrase:
    """A phrase of a caption, `caption.text[begin:end]`."""

    chain: str
    """Number that it shares with the phrases of all five captions that name the same thing."""
    types: tuple[str, ...]
    """people, clothing, bodyparts, animals, vehicles, instruments, scene, other or notvisual; one or several."""
    begin: int
    end: int
    """Characters, half-open."""


@dataclass(frozen=True, slots=True)
class Caption:
    """One caption without its marks, and its phrases in order."""

    text: str
    phrases: tuple[CaptionPhrase, ...]


@dataclass(frozen=True, slots=True)
class EntityBoxes:
    """What an image's XML file says."""

    width: int | None
    height: int | None
    regions: dict[str, tuple[RawRegion, ...]]
    """Chain -> its boxes, in the file's order."""
    scenes: frozenset[str]
    """Chains that name the whole scene."""
    unboxed: frozenset[str]
    """Chains that are marked as having no box."""


def parse_caption(line: str, *, where: str) -> Caption:
    """Take a line of a `Sentences` file apart: `[/EN#1/people Two men] look at [/EN#8/scene the yard] .`

    Words are separated by blanks. One that begins with `[/EN#` opens a phrase, one that ends with a bracket that it
    does not open itself closes it; other brackets belong to the caption.

    Raises:
        DataError: phrases are nested or left open, or one has no number.
    """
    words: list[str] = []
    spans: list[tuple[str, tuple[str, ...], int, int]] = []
    opened: tuple[str, tuple[str, ...], int] | None = None
    for token in line.split():
        if token.startswith(_OPENING):
            if opened:
                raise DataError(f"a phrase begins inside another one: {token}", where=where)
            head = token.removesuffix("]")
            number, *types = head[len(_OPENING) :].split("/")
            if not number.isdecimal():
                raise DataError(f"a phrase has no number: {token}", where=where)
            opened = (number, tuple(types), len(words))
            closes = head != token
        else:
            closes = opened is not None and token.endswith("]") and token.count("]") > token.count("[")
            word = token[:-1] if closes else token
            if word:
                words.append(word)
        if opened and closes:
            spans.append((*opened, len(words)))
            opened = None
    if opened:
        raise DataError(f"a phrase of chain {opened[0]} is never closed", where=where)
    text = " ".join(words)
    return Caption(text, tuple(_phrase(span, words, text) for span in spans))


_OBJECT = KnownKeys(
    "object",
    frozenset({"name", "bndbox", "scene", "nobndbox"}),
    frozenset({"pose", "truncated", "difficult", "occluded"}),
    has_box=True,
)


def parse_boxes(
    data: bytes, image_id: str, *, where: str, inclusive: bool = True, keys: KeyLog | None = None
) -> EntityBoxes:
    """Read an image's `Annotations` file.

    Its pixel numbers begin at 1 and name the first and the last pixel of a box, which becomes
    [xmin - 1, ymin - 1, xmax, ymax]; where they are not taken as `inclusive`, [xmin - 1, ymin - 1, xmax - 1, ymax - 1].
    A size that is no size is as good as none. `keys` collects unknown tags of objects.

    Raises:
        DataError: not well-formed, a number is missing or none, an object has a box and is said to have none, or has a
            tag that changes what it means.
    """
    root = parse_xml(data, where=where, max_bytes=_MAX_XML_BYTES)
    size = root.find("size")
    regions: dict[str, list[RawRegion]] = {}
    scenes: set[str] = set()
    unboxed: set[str] = set()
    for number, entity in enumerate(root.findall("object")):
        place = f"{where}: object {number}"
        if keys is not None:
            keys.check(_OBJECT, {str(part.tag): part.text for part in entity}, place)
        chains = dict.fromkeys((name.text or "").strip() for name in entity.findall("name"))
        is_scene, has_no_box = _flag(entity, "scene", place), _flag(entity, "nobndbox", place)
        box = entity.find("bndbox")
        if box is not None and (is_scene or has_no_box):
            raise DataError("an object has a box and is said to have none", where=place)
        for chain in chains:
            if box is not None:
                region = RawRegion(_box(box, place, inclusive), source_id=f"flickr30k:{image_id}/{chain}/{number}")
                regions.setdefault(chain, []).append(region)
            if is_scene:
                scenes.add(chain)
            if has_no_box:
                unboxed.add(chain)
    return EntityBoxes(
        width=_side(size, "width"),
        height=_side(size, "height"),
        regions={chain: tuple(boxes) for chain, boxes in regions.items()},
        scenes=frozenset(scenes),
        unboxed=frozenset(unboxed),
    )


def _phrase(span: tuple[str, tuple[str, ...], int, int], words: list[str], text: str) -> CaptionPhrase:
    chain, types, first, last = span
    begin = sum(len(word) for word in words[:first]) + first
    phrase = " ".join(words[first:last])
    assert text[begin : begin + len(phrase)] == phrase
    return CaptionPhrase(chain, types, begin, begin + len(phrase))


def _box(box: Element, where: str, inclusive: bool) -> BoxXYXY:
    x1, y1, x2, y2 = (_integer(box, tag, where) for tag in ("xmin", "ymin", "xmax", "ymax"))
    last = 0 if inclusive else 1
    return float(x1 - 1), float(y1 - 1), float(x2 - last), float(y2 - last)


def _side(size: Element | None, tag: str) -> int | None:
    if size is None:
        return None
    return side_of(number_of(size.findtext(tag, "").strip()))


def _flag(entity: Element, tag: str, where: str) -> bool:
    return entity.find(tag) is not None and _integer(entity, tag, where) != 0


def _integer(parent: Element, tag: str, where: str) -> int:
    text = parent.findtext(tag, "").strip()
    if _INTEGER.fullmatch(text) is None:
        raise DataError(f"<{tag}> should be a whole number, not {excerpt(text)!r}", where=where)
    return int(text)
