"""Flickr30k Entities: phrases of captions, and boxes for the chains of phrases that name the same object."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree.ElementTree import Element

from refcli.config.schema import Settings
from refcli.data.reading.archives import is_archive, list_files, open_archive, read_file
from refcli.data.reading.streams import UTF8_BOM, read_lines
from refcli.data.reading.xml_files import parse_xml
from refcli.data.sources.image_names import flickr_image
from refcli.data.sources.known_keys import KeyLog, KnownKeys, excerpt
from refcli.data.sources.record import Problems, RawExpression, RawRecord, RawRegion, Source
from refcli.data.sources.rows import valid_side, whole_number
from refcli.errors import DataError
from refcli.geometry.boxes import BoxXYXY

SPLITS = ("train", "val", "test")
NOT_VISUAL = "0"
"""The chain of all phrases that name nothing in the image; its phrases are unrelated."""
MAX_BYTES = 4 << 20
"""Maximum bytes of one caption or annotation file; real ones have a few kilobytes."""
_OPENING = "[/EN#"
_INTEGER = re.compile(r"[+-]?[0-9]{1,15}")
_OBJECT_KEYS = KnownKeys(
    "object",
    frozenset({"name", "bndbox", "scene", "nobndbox"}),
    frozenset({"pose", "truncated", "difficult", "occluded"}),
    has_box=True,
)


class FlickrSettings(Settings):
    """Options of the Flickr30k Entities reader."""

    scene_boxes: bool = False
    """Whether phrases for the whole scene, which have no box, get a box around the whole image."""
    inclusive_boxes: bool = True
    """Whether the far edges in the XML name the last pixel of the object; the reader then adds one pixel. False takes
    the numbers as edges, as TransVG and OneRef do: the boxes are one pixel short."""
    unrelated_captions: Literal["keep", "drop"] = "keep"
    """Whether to keep captions that do not belong to their image, as listed in UNRELATED_CAPTIONS."""


@dataclass(frozen=True)
class _Tree:
    """Caption and annotation files by image number."""

    sentences_in: Path
    sentences: Mapping[str, str]
    annotations_in: Path
    annotations: Mapping[str, str]


def read_flickr(
    files: Mapping[str, Path], settings: Settings, *, dataset: str, problems: Problems
) -> Iterator[RawRecord]:
    """Yield one record per phrase of a caption that has boxes, image by image; see `Reader`.

    Each box of the phrase's chain is one region; protocols differ in how they merge them.

    Args:
        files: `annotations` (annotations.zip, or the folder `Annotations`, or a folder of that and `Sentences`); one or
            more of `train`, `val`, `test` (lists of images); optionally `sentences` (the folder; without it the
            captions are in the zip, or beside `Annotations`) and `unrelated`.
        settings: a `FlickrSettings`.
        dataset: unused: the image keys are Flickr30k's.
        problems: collects one per omitted phrase: `phrase_without_box_chain_0`, `phrase_without_box_scene`,
            `phrase_without_box_nobndbox`, `phrase_without_box` (its chain is not in the annotation) and
            `phrase_of_unrelated_caption`; also `malformed_caption`, `image_without_annotation` and
            `malformed_annotation` (all phrases of the image are left out). Reported and kept: `caption_not_utf8` and
            `repeated_image` (twice in the list of one split; read once).
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
    image = flickr_image(image_id, width=boxes.width, height=boxes.height)
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
                "the scene cannot get a box around the image: the image's size is unknown",
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
    """0-based number and text of each line that is not blank, and whether it is UTF-8; others are read as Latin-1."""
    for number, line in enumerate(data.removeprefix(UTF8_BOM).split(b"\n")):
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
            "there is no list of the images of a split",
            where=str(files["annotations"]),
            hint="put train.txt, val.txt or test.txt of Flickr30k Entities beside it",
        )
    return images


def _unrelated(files: Mapping[str, Path], settings: FlickrSettings) -> frozenset[tuple[str, int]]:
    """(image, 0-based sentence) of the captions to drop."""
    if settings.unrelated_captions == "keep":
        return frozenset()
    if "unrelated" not in files:
        raise DataError(
            "there is no list of the unrelated captions to drop",
            where=str(files["annotations"]),
            hint="put UNRELATED_CAPTIONS beside it, or set unrelated_captions to keep",
        )
    pairs = set()
    for number, text in read_lines(files["unrelated"]):
        if text.lstrip().startswith("#"):
            continue
        fields = text.split()
        sentence = whole_number(fields[1]) if len(fields) == len(("image", "sentence")) else None
        if sentence is None:
            raise DataError(
                f"{excerpt(text)!r} is not <image> <sentence number>", where=f"{files['unrelated']}: line {number}"
            )
        pairs.add((fields[0], sentence - 1))
    return frozenset(pairs)


@dataclass(frozen=True, slots=True)
class CaptionPhrase:
    """A phrase of a caption, `caption.text[begin:end]`."""

    chain: str
    """Number shared by the phrases of all five captions that name the same object."""
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
    """The content of an image's XML file."""

    width: int | None
    height: int | None
    regions: dict[str, tuple[RawRegion, ...]]
    """Chain -> its boxes, in the file's order."""
    scenes: frozenset[str]
    """Chains that name the whole scene."""
    unboxed: frozenset[str]
    """Chains marked as having no box."""


def parse_caption(line: str, *, where: str) -> Caption:
    """Parse a line of a `Sentences` file: `[/EN#1/people Two men] look at [/EN#8/scene the yard] .`

    Words are separated by blanks. A word that starts with `[/EN#` opens a phrase; a word that ends with a bracket it
    does not open itself closes the phrase; other brackets belong to the caption.

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


def parse_boxes(
    data: bytes, image_id: str, *, where: str, inclusive: bool = True, keys: KeyLog | None = None
) -> EntityBoxes:
    """Read an image's `Annotations` file.

    Pixel numbers start at 1 and name the first and the last pixel of a box, which becomes
    [xmin - 1, ymin - 1, xmax, ymax]; if not `inclusive`, [xmin - 1, ymin - 1, xmax - 1, ymax - 1]. An invalid image
    size counts as unknown. `keys` collects unknown tags of objects.

    Raises:
        DataError: the XML is not well-formed, a number is missing or invalid, an object has a box and is marked as
            having none, or a tag changes an object's meaning.
    """
    root = parse_xml(data, where=where, max_bytes=MAX_BYTES)
    size = root.find("size")
    regions: dict[str, list[RawRegion]] = {}
    scenes: set[str] = set()
    unboxed: set[str] = set()
    for number, entity in enumerate(root.findall("object")):
        place = f"{where}: object {number}"
        if keys is not None:
            keys.check(_OBJECT_KEYS, {str(part.tag): part.text for part in entity}, place)
        chains = dict.fromkeys((name.text or "").strip() for name in entity.findall("name"))
        is_scene, has_no_box = _flag(entity, "scene", place), _flag(entity, "nobndbox", place)
        box = entity.find("bndbox")
        if box is not None and (is_scene or has_no_box):
            raise DataError("an object has a box and is marked as having none", where=place)
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
    return valid_side(whole_number(size.findtext(tag, "").strip()))


def _flag(entity: Element, tag: str, where: str) -> bool:
    return entity.find(tag) is not None and _integer(entity, tag, where) != 0


def _integer(parent: Element, tag: str, where: str) -> int:
    text = parent.findtext(tag, "").strip()
    if _INTEGER.fullmatch(text) is None:
        raise DataError(f"<{tag}> should be a whole number, not {excerpt(text)!r}", where=where)
    return int(text)


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
