"""Overlays: an answer drawn on its image, with mask, box, score and the expression below."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw

from refcli.contracts.example import RLE
from refcli.contracts.prediction import Answer, Target
from refcli.drawing.colours import AMBER, BLANK, GREY, INK, OVERLAY_COLOURS, RED, WHITE, Colour, ink_on
from refcli.drawing.lettering import font_for, font_of, line_height, readable, wrap
from refcli.geometry.masks import decode_mask, scaled_mask

SMALLEST_DRAWING = 640
"""Images with a shorter long side are enlarged before drawing, so that lines and letters stay fine."""
LARGEST_DRAWING = 4096
"""Images with a longer side are reduced before drawing: every viewer and file format supports the result."""
FILL_OPACITY = 0.28
DIMMED = 0.72
"""Brightness outside the masks, if there are any."""
MAX_CAPTION_LINES = 4
MAX_CORNER_SHARE = 0.25


@dataclass(frozen=True)
class _Measures:
    """Lengths in pixels of the drawing."""

    line: int
    rim: int
    """Width of the white edge on each side of a line."""
    letter: int
    margin: int


def draw_answer(
    pixels: np.ndarray, answer: Answer, *, is_truth: bool = False, record: str | None = None
) -> Image.Image:
    """Draw an answer; small images are enlarged, large ones reduced, and a caption strip is added below.

    Args:
        pixels: uint8 RGB [height, width, 3] of the image, EXIF orientation applied; it may be resized.
        answer: the answer to draw; its boxes and masks are in pixels of the original image.
        is_truth: the answer is the ground truth, not a model's: it has no scores to draw.
        record: where to look up an expression whose letters no font has, such as "line 3"; its id by default.
    """
    canvas = resize_for_drawing(pixels)
    canvas = canvas.copy() if canvas is pixels else canvas
    long_side = max(canvas.shape[:2])
    is_size_known = answer.width and answer.height
    factor = long_side / (max(answer.width, answer.height) if is_size_known else max(pixels.shape[:2]))
    measures = _measure(long_side)
    canvas = _draw_masks(canvas, answer.targets, measures)
    for number, target in enumerate(answer.targets):
        _draw_box(canvas, [side * factor for side in target.box_xyxy], _colour(number), measures)
    image = Image.fromarray(canvas)
    for number, target in enumerate(() if is_truth else answer.targets):
        _draw_score(image, [side * factor for side in target.box_xyxy], target.score, _colour(number), measures)
    stand_in = f"[no installed font has these letters: see {record or readable(answer.id, 'the answer')}]"
    texts = [(readable(answer.expression, stand_in), WHITE)]
    if answer.error is not None:
        texts.append((readable(answer.error, stand_in), GREY))
    return _with_caption(image, texts, verdict(answer, is_truth=is_truth), measures)


def resize_for_drawing(pixels: np.ndarray) -> np.ndarray:
    """An image of the size in which it is drawn; the same array if it has that size already.

    Args:
        pixels: uint8 RGB [height, width, 3].
    """
    height, width = pixels.shape[:2]
    longer = max(height, width)
    factor = min(max(longer, SMALLEST_DRAWING), LARGEST_DRAWING) / longer
    if factor == 1:
        return pixels
    size = max(1, round(width * factor)), max(1, round(height * factor))
    resized: np.ndarray = cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA)
    return resized


def blank_image(width: int = SMALLEST_DRAWING, height: int = SMALLEST_DRAWING // 2) -> np.ndarray:
    """A stand-in for an image that cannot be read: uint8 RGB [height, width, 3]."""
    return np.full((height, width, 3), BLANK, dtype=np.uint8)


def _colour(number: int) -> Colour:
    return OVERLAY_COLOURS[number % len(OVERLAY_COLOURS)]


def _measure(long_side: int) -> _Measures:
    """Letters and lines grow with the square root of the image's size: readable if small, not clumsy if large."""
    root = long_side**0.5
    letter = round(0.8 * root)
    return _Measures(line=max(2, round(root / 11)), rim=max(1, round(root / 30)), letter=letter, margin=letter * 2 // 3)


def _draw_masks(canvas: np.ndarray, targets: tuple[Target, ...], measures: _Measures) -> np.ndarray:
    """Tint the masks, dim the rest, and trace the outlines in white under colour."""
    masks = [(number, target.mask) for number, target in enumerate(targets) if target.mask is not None]
    height, width = canvas.shape[:2]
    soft = [(number, _opacity(mask, width, height)) for number, mask in masks]
    if not any(alpha.any() for _, alpha in soft):
        return canvas
    light = np.maximum.reduce([alpha for _, alpha in soft])[..., None]
    painted = canvas.astype(np.float32) * (DIMMED + (1 - DIMMED) * light)
    for number, alpha in soft:
        share = FILL_OPACITY * alpha[..., None]
        painted = painted * (1 - share) + np.array(_colour(number), dtype=np.float32) * share
    drawn: np.ndarray = np.clip(painted + 0.5, 0, 255).astype(np.uint8)
    for number, alpha in soft:
        outlines, _ = cv2.findContours((alpha >= 0.5).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.polylines(drawn, outlines, True, WHITE, measures.line + 2 * measures.rim, cv2.LINE_AA)
        cv2.polylines(drawn, outlines, True, _colour(number), measures.line, cv2.LINE_AA)
    return drawn


def _opacity(mask: RLE, width: int, height: int) -> np.ndarray:
    """A mask as opacity 0..1 at the drawing's size; the steps of an enlarged one are smoothed."""
    if width < mask.size[1] or height < mask.size[0]:
        return np.ascontiguousarray(scaled_mask(mask, width, height), dtype=np.float32)
    alpha = np.ascontiguousarray(decode_mask(mask), dtype=np.float32)
    if mask.size == (height, width):
        return alpha
    large = cv2.resize(alpha, (width, height), interpolation=cv2.INTER_LINEAR)
    smooth = cv2.GaussianBlur(large, (0, 0), sigmaX=0.6 * width / mask.size[1])
    opacity: np.ndarray = np.clip((smooth - 0.5) * 3 + 0.5, 0, 1)
    return opacity


def _draw_box(canvas: np.ndarray, box_xyxy: list[float], colour: Colour, measures: _Measures) -> None:
    """A rectangle with rounded corners and a white rim, moved inside the canvas if the box touches its edge."""
    height, width = canvas.shape[:2]
    inset = measures.line / 2
    left, right = np.clip([box_xyxy[0], box_xyxy[2]], inset, max(width - 1 - inset, inset))
    top, bottom = np.clip([box_xyxy[1], box_xyxy[3]], inset, max(height - 1 - inset, inset))
    outline = _rounded(left, top, right, bottom, radius=3.0 * measures.line)
    cv2.polylines(canvas, [outline], True, WHITE, measures.line + 2 * measures.rim, cv2.LINE_AA, shift=4)
    cv2.polylines(canvas, [outline], True, colour, measures.line, cv2.LINE_AA, shift=4)


def _rounded(left: float, top: float, right: float, bottom: float, radius: float) -> np.ndarray:
    """Points of a rounded rectangle in sixteenths of a pixel, clockwise."""
    radius = min(radius, (right - left) * MAX_CORNER_SHARE, (bottom - top) * MAX_CORNER_SHARE)
    turns = np.linspace(0, np.pi / 2, 8)
    arc = np.stack([np.cos(turns), np.sin(turns)], axis=1) * radius
    corners = (
        ((right - radius, bottom - radius), arc),
        ((left + radius, bottom - radius), arc[::-1] * (-1, 1)),
        ((left + radius, top + radius), -arc),
        ((right - radius, top + radius), arc[::-1] * (1, -1)),
    )
    points = np.concatenate([np.asarray(centre) + bend for centre, bend in corners])
    sixteenths: np.ndarray = np.rint(points * 16).astype(np.int32)
    return sixteenths[:, None]


def _draw_score(image: Image.Image, box_xyxy: list[float], score: float, colour: Colour, measures: _Measures) -> None:
    """The score on a label above the box's left corner, or inside the box if there is no room above."""
    text, font = f"{100 * score:.0f}%", font_of(measures.letter * 4 // 5)
    draw = ImageDraw.Draw(image)
    pad = measures.letter // 4
    x0, y0, x1, y1 = draw.textbbox((0, 0), text, font=font)
    width, height = int(x1 - x0) + 2 * pad, int(y1 - y0) + 2 * pad
    left = int(min(max(box_xyxy[0], 0), max(image.width - width, 0)))
    above = int(box_xyxy[1]) - height - measures.line
    top = above if above >= 0 else int(min(max(box_xyxy[1], 0) + 2 * measures.line, max(image.height - height, 0)))
    left += 0 if above >= 0 else 2 * measures.line
    draw.rounded_rectangle((left - 1, top - 1, left + width + 1, top + height + 1), pad + 1, fill=WHITE)
    draw.rounded_rectangle((left, top, left + width, top + height), pad, fill=colour)
    draw.text((left + pad - x0, top + pad - y0), text, font=font, fill=ink_on(colour))


def verdict(answer: Answer, *, is_truth: bool = False) -> tuple[str, Colour]:
    """The outcome in one or two words, and the colour of its label in a caption."""
    if answer.error is not None:
        return "error", RED
    if answer.no_target:
        return "no target", AMBER
    found = len(answer.targets)
    if is_truth:
        return ("1 region" if found == 1 else f"{found} regions"), OVERLAY_COLOURS[0]
    return ("found" if found == 1 else f"{found} found"), OVERLAY_COLOURS[0]


def _with_caption(
    image: Image.Image, texts: list[tuple[str, Colour]], verdict: tuple[str, Colour], measures: _Measures
) -> Image.Image:
    """Add a dark strip below with a label for the verdict, and the texts in their colours."""
    margin, step = measures.margin, line_height(measures.letter)
    words, colour = verdict
    label_font = font_of(measures.letter * 4 // 5)
    label_width = int(label_font.getlength(words)) + 2 * (measures.letter // 2)
    width = max(image.width, label_width + 2 * margin + 8 * measures.letter)
    text_left = margin + label_width + margin
    lines = [
        (line, ink, font)
        for text, ink in texts
        for font in [font_for(text, measures.letter)]
        for line in wrap(text, font, width - text_left - margin, MAX_CAPTION_LINES)
    ]
    strip = max(len(lines), 1) * step + 2 * margin
    sheet = Image.new("RGB", (width, image.height + strip), INK)
    sheet.paste(image, ((width - image.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    top = image.height + margin
    draw.rounded_rectangle((margin, top, margin + label_width, top + step), step // 2, fill=colour)
    draw.text((margin + label_width // 2, top + step // 2), words, font=label_font, fill=ink_on(colour), anchor="mm")
    for number, (line, ink, font) in enumerate(lines):
        position = (text_left, top + number * step + step // 2)
        draw.text(position, line, font=font, fill=ink, anchor="lm")
    return sheet
