"""Pieces of a page: escaped text, tables, figures with their exact values, pictures inside the file."""

from __future__ import annotations

import html
import math
import unicodedata
from base64 import b64encode
from collections.abc import Iterable, Sequence

from refcli.evaluation.plots import INK, Plot

DASH = "–"
DARK = "(prefers-color-scheme: dark)"
DARK_INK, LIGHT_INK = "#e7e9ee", "#1a1d24"
"""As in html_report.css."""
_NOT_TEXT = frozenset({"Cc", "Cs"})
"""Control characters and halves of surrogate pairs: no file of text may hold them."""


def text(words: object) -> str:
    """Any words as text of the page, whatever is in them."""
    plain = (
        letter if unicodedata.category(letter) not in _NOT_TEXT or letter in "\n\t" else "\ufffd"
        for letter in str(words)
    )
    return html.escape("".join(plain))


def figure(value: float | None, *, key: str | None = None, decimals: int = 2, signed: bool = False) -> str:
    """A fraction in percent, with its exact value and its key in summary.json; a dash where there is none."""
    if value is None or math.isnan(value):
        return DASH
    title = "" if key is None else f' title="{text(key)}"'
    sign = "+" if signed else ""
    return f'<data value="{value!r}"{title}>{100 * value:{sign}.{decimals}f}</data>'


def interval(bounds: tuple[float, float] | None, *, signed: bool = False) -> str:
    """A 95 % interval in percent, or nothing where it is not known."""
    if bounds is None or math.isnan(bounds[0]):
        return ""
    sign = "+" if signed else ""
    low, high = (f"{100 * bound:{sign}.1f}" for bound in bounds)
    return f"<small>{low} {DASH} {high}</small>"


def table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, num_texts: int = 1, mine: Iterable[int] = ()
) -> str:
    """A table that scrolls sideways where it is too wide.

    Args:
        headings: text.
        rows: cells as markup.
        num_texts: so many columns on the left are words.
        mine: numbers of rows that stand out.
    """

    def cell(name: str, at: int, content: str) -> str:
        return f"<{name}{' class=text' if at < num_texts else ''}>{content}</{name}>"

    special = set(mine)
    head = "".join(cell("th", at, text(one)) for at, one in enumerate(headings))
    body = "\n".join(
        f"<tr{' class=mine' if number in special else ''}>"
        + "".join(cell("td", at, one) for at, one in enumerate(row))
        + "</tr>"
        for number, row in enumerate(rows)
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def plot_figure(plot: Plot) -> str:
    """A plot, once in the ink of either colour scheme."""
    dark, light = (_data_uri("image/svg+xml", plot.svg.replace(INK, ink).encode()) for ink in (DARK_INK, LIGHT_INK))
    return (
        f"<figure><figcaption>{text(plot.title)}</figcaption><picture>"
        f'<source media="{DARK}" srcset="{dark}"><img src="{light}" alt="{text(plot.alt)}"></picture></figure>'
    )


def picture(jpeg: bytes, *, alt: str) -> str:
    """A JPEG inside the page."""
    return f'<img src="{_data_uri("image/jpeg", jpeg)}" alt="{text(alt)}" loading="lazy">'


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode('ascii')}"
