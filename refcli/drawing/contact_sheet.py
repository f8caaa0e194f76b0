"""Contact sheets: many drawings on one page."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from refcli.drawing.colours import INK, PAPER
from refcli.drawing.lettering import font_for, line_height, readable, wrap

GUTTER = 24
TITLE_SIZE = 30
MAX_HEIGHT_OF_WIDTH = 2
"""Limit of a drawing's height, in widths of its cell; a taller one is made narrower."""


def contact_sheet(
    drawings: Sequence[Image.Image], *, columns: int = 4, cell_width: int = 420, title: str | None = None
) -> Image.Image:
    """Lay drawings out in a grid, row by row, each scaled to the cell's width.

    Args:
        drawings: at least one image.
        columns: maximum number of drawings in a row.
        cell_width: width of each in pixels.
        title: the headline.
    """
    columns = min(columns, len(drawings))
    cells = [as_cell(drawing, cell_width) for drawing in drawings]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    width = columns * (cell_width + GUTTER) + GUTTER
    shown = readable(title or "", "")
    font = font_for(shown, TITLE_SIZE)
    headline = wrap(shown, font, width - 2 * GUTTER, 2)
    top = GUTTER + len(headline) * line_height(TITLE_SIZE) + (GUTTER // 2 if headline else 0)
    height = top + sum(max(cell.height for cell in row) + GUTTER for row in rows)
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(headline):
        position = (GUTTER, GUTTER + number * line_height(TITLE_SIZE))
        draw.text(position, line, font=font, fill=INK)
    for row in rows:
        for column, cell in enumerate(row):
            margin = (cell_width - cell.width) // 2
            sheet.paste(cell, (GUTTER + column * (cell_width + GUTTER) + margin, top))
        top += max(cell.height for cell in row) + GUTTER
    return sheet


def as_cell(drawing: Image.Image, width: int) -> Image.Image:
    """A drawing with the width of a cell, or narrower if it is very tall."""
    factor = min(width / drawing.width, MAX_HEIGHT_OF_WIDTH * width / drawing.height)
    size = max(1, round(drawing.width * factor)), max(1, round(drawing.height * factor))
    return drawing.resize(size, Image.Resampling.LANCZOS)


def stack(sheets: Sequence[Image.Image]) -> Image.Image:
    """One sheet of several, one below the other."""
    width = max(sheet.width for sheet in sheets)
    height = sum(sheet.height for sheet in sheets) + GUTTER * (len(sheets) - 1)
    stacked = Image.new("RGB", (width, height), PAPER)
    top = 0
    for sheet in sheets:
        stacked.paste(sheet, (0, top))
        top += sheet.height + GUTTER
    return stacked
