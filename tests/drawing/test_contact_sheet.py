"""A contact sheet contains every drawing, in rows."""

from __future__ import annotations

import numpy as np
from PIL import Image

from refcli.drawing.contact_sheet import GUTTER, contact_sheet


def test_a_contact_sheet_holds_every_drawing_in_rows():
    drawings = [Image.new("RGB", (100, 50), colour) for colour in ("red", "green", "blue")]
    sheet = np.asarray(contact_sheet(drawings, columns=2, cell_width=200))
    assert sheet.shape[1] == 2 * 200 + 3 * GUTTER
    assert tuple(sheet[GUTTER + 50, GUTTER + 100]) == (255, 0, 0)
    assert tuple(sheet[GUTTER + 50, 2 * GUTTER + 300]) == (0, 128, 0)
    assert tuple(sheet[2 * GUTTER + 150, GUTTER + 100]) == (0, 0, 255)
