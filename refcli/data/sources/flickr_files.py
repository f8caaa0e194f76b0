"""The two files that Flickr30k Entities keeps per image: captions with marked phrases, and boxes by chain."""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from refcli.data.reading.xml_files import parse_xml
from refcli.data.sources.known_keys import KeyLog, KnownKeys, excerpt
from refcli.data.sources.record import BoxXYXY, RawRegion
from refcli.data.sources.rows import number_of, side_of
from refcli.errors import DataError

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
