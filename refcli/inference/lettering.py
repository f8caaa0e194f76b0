"""Text on pictures: fonts that are always there, and wrapping by measured width."""

from __future__ import annotations

from functools import lru_cache

from PIL import ImageFont

WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf")
"""Tried for letters beyond Latin, which the font inside Pillow does not have."""
LAST_LATIN = "\u024f"
ELLIPSIS = "..."

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@lru_cache(maxsize=64)
def font_of(size: int, *, is_latin: bool = True) -> Font:
    """Pillow's built-in font; for other scripts a system font that knows them, where there is one."""
    for name in () if is_latin else WIDE_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def font_for(text: str, size: int) -> Font:
    """A font of `size` pixels for this text."""
    return font_of(size, is_latin=all(letter <= LAST_LATIN for letter in text))


def line_height(size: int) -> int:
    """Pixels from one baseline to the next."""
    return round(size * 1.3)


def wrap(text: str, font: Font, width: int, max_lines: int) -> list[str]:
    """Lines no wider than `width` pixels; a word that is too long is broken, what is left over becomes an ellipsis."""
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
    """How many letters fit (at least one), by bisection: width grows with length."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(text[:middle]) <= width:
            low = middle
        else:
            high = middle - 1
    return low
