"""Text on images: choosing a font with all its letters, transliterating letters that no font has, and wrapping."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterator
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

BUNDLED = "mpl-data/fonts/ttf/DejaVuSans.ttf"
"""matplotlib's font with Latin, Greek, Cyrillic, Arabic, Hebrew and other letters; Pillow's own has little more than
ASCII."""
PREFERRED = ("notosans", "notosanscjk", "dejavusans", "arialunicode", "arial", "segoeui", "malgun", "msyh", "meiryo")
"""Tried first among the fonts of the system, by the start of their file names."""
STYLED = ("bold", "italic", "oblique", "light", "thin", "black", "condensed", "mono", "serif")
FONT_SUFFIXES = frozenset({".ttf", ".ttc", ".otf", ".otc"})
PLACEHOLDER_FONTS = ("lastresort", "adobeblank", "fallback")
"""Fonts that draw every character alike."""
MAX_FONTS = 2000
PROBE_SIZE = 20
NO_CHARACTER = "\uffff"
"""Every font draws its sign for a missing letter here."""
NAMED_BY_SOUND = (" LETTER ", " SYLLABLE ", " CHARACTER ")
"""Words before the sound in the Unicode name of a letter."""
JOINERS = frozenset("\u200c\u200d")
VARIANTS = frozenset(map(chr, range(0xFE00, 0xFE10)))
"""Characters that only change the shape of their neighbours."""
ELLIPSIS = "..."

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@lru_cache(maxsize=256)
def font_of(size: int, *, file: Path | None = None) -> Font:
    """The font in a file; without a file, Pillow's built-in font."""
    return ImageFont.load_default(size) if file is None else ImageFont.truetype(file, size)


def font_for(text: str, size: int) -> Font:
    """A font of `size` pixels with all letters of this text, or with most of them if none has all."""
    return font_of(size, file=_best_file(_letters(text), font_folders())[0])


def readable(text: str, otherwise: str) -> str:
    """The text as it can be drawn: letters that no installed font has are transliterated.

    Args:
        text: any characters; those without a shape are removed.
        otherwise: replaces a text with letters that cannot be transliterated, such as Chinese ones.
    """
    shown = " ".join("".join(map(_visible, unicodedata.normalize("NFC", text))).split())
    missing = _best_file(_letters(shown), font_folders())[1]
    if not missing:
        return shown
    spelled = [
        _spelled(letter) if letter in missing | JOINERS or unicodedata.category(letter)[0] == "M" else letter
        for letter in shown
    ]
    return otherwise if None in spelled else " ".join("".join(filter(None, spelled)).split())


def _visible(character: str) -> str:
    """The character itself; a blank for white space, nothing for a character without a shape."""
    if character.isspace():
        return " "
    is_shapeless = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Cn") and character not in JOINERS
    return "" if is_shapeless or character in VARIANTS else character


def _letters(text: str) -> frozenset[str]:
    """The characters that a font needs for a text."""
    return frozenset(text) - {" "} - JOINERS


def _spelled(letter: str) -> str | None:
    """A character in plain letters: without its accent, by its sound, or by the name of a symbol; None if unknown."""
    plain = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    if plain:
        return plain
    category, name = unicodedata.category(letter), unicodedata.name(letter, "")
    if category[0] == "M" or letter in JOINERS:
        return ""
    for mark in NAMED_BY_SOUND:
        if mark in name:
            words = [word for word in name.partition(mark)[2].split() if word not in ("SMALL", "CAPITAL")]
            return words[0].lower() if words else None
    if category[0] in "SPN" and name:
        return f"({name.lower()})"
    return None


@lru_cache(maxsize=4096)
def _best_file(letters: frozenset[str], folders: tuple[Path, ...]) -> tuple[Path | None, frozenset[str]]:
    """The first font with all letters, else the one that lacks fewest, and the missing letters; None: built-in font."""
    best: tuple[Path | None, frozenset[str]] | None = None
    for file in _files(folders):
        missing = frozenset(letter for letter in letters if not _has(file, letter))
        if best is None or len(missing) < len(best[1]):
            best = file, missing
        if not missing:
            break
    assert best is not None  # the built-in font always exists
    return best


@cache
def _has(file: Path | None, letter: str) -> bool:
    """Whether a font draws a letter differently from one that it does not have."""
    try:
        font = font_of(PROBE_SIZE, file=file)
        drawn, missing = font.getmask(letter), font.getmask(NO_CHARACTER)
    except (OSError, ValueError, UnicodeError):  # not a font, or only of another size
        return False
    return (drawn.size, bytes(drawn)) != (missing.size, bytes(missing))


def _files(folders: tuple[Path, ...]) -> Iterator[Path | None]:
    yield None
    matplotlib = find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin is not None:
        bundled = Path(matplotlib.origin).parent / BUNDLED
        if bundled.is_file():
            yield bundled
    yield from _files_below(folders)


@cache
def _files_below(folders: tuple[Path, ...]) -> tuple[Path, ...]:
    """The fonts in these folders, plain and well-known ones first."""
    found: set[Path] = set()
    for folder in folders:
        for parent, _, names in os.walk(folder):
            found.update(Path(parent, name) for name in names if Path(name).suffix.lower() in FONT_SUFFIXES)
    real = [file for file in found if not any(word in _plain_name(file) for word in PLACEHOLDER_FONTS)]
    return tuple(sorted(real, key=_rank)[:MAX_FONTS])


def font_folders() -> tuple[Path, ...]:
    """The font folders of this system and of the user."""
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.home raises where there is none
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        own = Path(local or home / "AppData/Local", "Microsoft/Windows/Fonts")
        return Path(os.environ.get("WINDIR", "C:/Windows"), "Fonts"), own
    if sys.platform == "darwin":
        return Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    own = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share")
    return *(Path(folder, "fonts") for folder in shared.split(":") if folder), own / "fonts", home / ".fonts"


def _rank(file: Path) -> tuple[int, int, str]:
    name = _plain_name(file)
    known = next((rank for rank, word in enumerate(PREFERRED) if name.startswith(word)), len(PREFERRED))
    return sum(word in name for word in STYLED), known, str(file)


def _plain_name(file: Path) -> str:
    return "".join(filter(str.isalnum, file.stem.lower()))


def line_height(size: int) -> int:
    """Pixels from one baseline to the next."""
    return round(size * 1.3)


def wrap(text: str, font: Font, width: int, max_lines: int) -> list[str]:
    """Lines no wider than `width` pixels; longer words are broken, and "..." replaces text beyond the last line."""
    lines: list[str] = []
    rest = " ".join(text[: max_lines * width].split())  # no letter is narrower than a pixel
    while rest and len(lines) < max_lines:
        fits = _longest_prefix(rest, font, width)
        if fits < len(rest) and " " in rest[: fits + 1]:
            fits = rest.rindex(" ", 0, fits + 1)
        lines.append(rest[:fits].rstrip())
        rest = rest[fits:].lstrip()
    if rest and lines:
        last = lines[-1]
        while last and font.getlength(last + ELLIPSIS) > width:
            last = last[:-1]
        lines[-1] = last.rstrip() + ELLIPSIS
    return lines


def _longest_prefix(text: str, font: Font, width: int) -> int:
    """Number of letters that fit (at least one), by bisection: width grows with length."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(text[:middle]) <= width:
            low = middle
        else:
            high = middle - 1
    return low
