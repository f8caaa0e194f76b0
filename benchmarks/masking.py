"""CPU time of masking a batch and of its relation targets, compared with a plain Python loop over patches and words.

    python benchmarks/masking.py [BATCH] [GRID]

One thread, `time.process_time`, median of many calls, so that other processes affect the figures little. The loops get
the same random numbers precomputed, and give the same masks.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from refcli.config.pretraining import ImageMaskingSettings, TextMaskingSettings
from refcli.pretraining.draws import SampleDraws, sample_keys
from refcli.pretraining.image_masking import BLOCK_ROUNDS, BLOCK_STREAM, PATCH_STREAM, mask_patches
from refcli.pretraining.text_masking import FATE_STREAM, ORDER_STREAM, REPLACEMENT_STREAM, mask_words
from refcli.pretraining.visual_target_relation import visual_target_relation

NUM_WORDS = 16
MASK_ID, VOCABULARY = 64001, (4, 64001)
LIMIT_MS = 5.0


def loop_rectangle(box: Sequence[float], grid: tuple[int, int], margin: int) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) in patches of one box (cx, cy, w, h)."""
    rows, columns = grid
    cx, cy, w, h = box[0] * columns, box[1] * rows, box[2] * columns, box[3] * rows
    x0, y0 = max(int(cx - w / 2) - margin, 0), max(int(cy - h / 2) - margin, 0)
    return x0, y0, min(int(cx + w / 2) + margin, columns), min(int(cy + h / 2) + margin, rows)


def loop_mask(
    box: Sequence[float],
    exists: bool,
    grid: tuple[int, int],
    settings: ImageMaskingSettings,
    order: Sequence[int],
    blocks: Sequence[float],
) -> list[bool]:
    """One sample's mask: `order` ranks the patches, `blocks` has four uniform numbers for each round."""
    rows, columns = grid
    total = rows * columns
    masked = [False] * total
    for patch in sorted(range(total), key=order.__getitem__)[: total - int(total * (1 - settings.context_ratio))]:
        masked[patch] = True
    if settings.method == "vanilla" or not exists:
        return masked
    x0, y0, x1, y1 = loop_rectangle(box, grid, settings.margin)
    inside = [row * columns + column for row in range(y0, y1) for column in range(x0, x1)]
    wanted = len(inside) - int(len(inside) * (1 - settings.region_ratio))
    chosen: list[int] = []
    if settings.method == "block":
        covered: set[int] = set()
        for size, aspect, down, along in zip(*[iter(blocks)] * 4, strict=True):
            if len(chosen) == wanted:
                break
            area = 1 + size * (wanted - len(chosen) - 1)
            ratio = settings.min_aspect ** (1 - 2 * aspect)
            height = min(max(round((area * ratio) ** 0.5), 1), y1 - y0)
            width = min(max(round((area / ratio) ** 0.5), 1), x1 - x0)
            top, left = y0 + int(down * (y1 - y0 - height + 1)), x0 + int(along * (x1 - x0 - width + 1))
            block = [row * columns + column for row in range(top, top + height) for column in range(left, left + width)]
            new = sorted((patch for patch in block if patch not in covered), key=order.__getitem__)
            covered.update(new)
            chosen += new[: wanted - len(chosen)]
    taken = set(chosen)
    rest = sorted((patch for patch in inside if patch not in taken), key=order.__getitem__)
    for patch in inside:
        masked[patch] = False
    for patch in [*chosen, *rest[: wanted - len(chosen)]]:
        masked[patch] = True
    return masked


def loop_relation(box: Sequence[float], grid: tuple[int, int], offset: float = 0.0) -> list[list[float]]:
    """One sample's visual target relation, patch by patch."""
    rows, columns = grid
    cx, cy, w, h = box
    return [
        [(column + offset) / columns - cx, (row + offset) / rows - cy, 1 / max(w * columns, 1), 1 / max(h * rows, 1)]
        for row in range(rows)
        for column in range(columns)
    ]


def loop_words(
    ids: Sequence[int],
    is_pad: Sequence[bool],
    roles: Sequence[int],
    settings: TextMaskingSettings,
    order: Sequence[float],
    fate: Sequence[float],
    other: Sequence[float],
) -> tuple[list[int], list[bool]]:
    """One sample's masked words and where they are, from three uniform numbers for each word."""
    places = [place for place in range(1, len(ids)) if not is_pad[place]]
    wanted = max(1, min(int(len(places) * settings.ratio + 0.5), len(places)))
    ranked = sorted(places, key=lambda place: (roles[place] or 3, order[place]))
    shown, masked = list(ids), [False] * len(ids)
    low, high = VOCABULARY
    for place in ranked[:wanted]:
        masked[place] = True
        if fate[place] < settings.mask_share:
            shown[place] = MASK_ID
        elif fate[place] < settings.mask_share + settings.random_share:
            shown[place] = low + int(other[place] * (high - low))
    return shown, masked


def milliseconds(work: Callable[[], object], *, calls: int) -> float:
    """Median CPU time of a call."""
    work()
    found = []
    for _ in range(calls):
        start = time.process_time()
        work()
        found.append((time.process_time() - start) * 1e3)
    return statistics.median(found)


def main(batch: int = 64, side: int = 24) -> int:
    torch.set_num_threads(1)
    grid = side, side
    keys = sample_keys([f"sample {number}" for number in range(batch)])
    middle = 0.2 + 0.6 * SampleDraws(0, 0, keys).uniforms(2, stream=100)
    boxes = torch.cat([middle, 0.1 + 0.5 * SampleDraws(0, 0, keys).uniforms(2, stream=101)], dim=1)
    exists = torch.ones(batch, dtype=torch.bool)
    lengths = 4 + (SampleDraws(0, 0, keys).uniforms(1, stream=102) * (NUM_WORDS - 3)).long()
    is_pad = torch.arange(NUM_WORDS) >= lengths
    ids = (100 + torch.arange(NUM_WORDS)).repeat(batch, 1).masked_fill(is_pad, 1)
    roles = torch.tensor([0, 0, 1, 2] + [0] * (NUM_WORDS - 4)).repeat(batch, 1)
    text = TextMaskingSettings()
    draws = SampleDraws(0, 1, keys)

    def vectorised(image: ImageMaskingSettings) -> tuple[Tensor, ...]:
        words = mask_words(ids, is_pad, roles, text, mask_id=MASK_ID, vocabulary=VOCABULARY, draws=draws)
        relation = visual_target_relation(boxes, grid, place="corner")
        return mask_patches(boxes, exists, grid, image, draws), relation, words.token_ids, words.is_masked

    order = draws.integers(side * side, stream=PATCH_STREAM).tolist()
    blocks = draws.uniforms(4 * BLOCK_ROUNDS, stream=BLOCK_STREAM).tolist()
    word_draws = [
        draws.uniforms(NUM_WORDS, stream=stream).tolist() for stream in (ORDER_STREAM, FATE_STREAM, REPLACEMENT_STREAM)
    ]
    plain_boxes, plain_words = boxes.tolist(), list(zip(ids.tolist(), is_pad.tolist(), roles.tolist(), strict=True))

    def loops(image: ImageMaskingSettings) -> tuple[Tensor, ...]:
        masks = [loop_mask(plain_boxes[n], True, grid, image, order[n], blocks[n]) for n in range(batch)]
        relations = [loop_relation(box, grid) for box in plain_boxes]
        words = [loop_words(*plain_words[n], text, *(draws[n] for draws in word_draws)) for n in range(batch)]
        shown, masked = zip(*words, strict=True)
        return torch.tensor(masks), torch.tensor(relations), torch.tensor(shown), torch.tensor(masked)

    slow = False
    for method in ("uniform", "block", "vanilla"):
        image = ImageMaskingSettings(method=method)
        for ours, theirs in zip(vectorised(image), loops(image), strict=True):
            torch.testing.assert_close(ours, theirs)
        fast, plain = milliseconds(partial(vectorised, image), calls=101), milliseconds(partial(loops, image), calls=5)
        slow |= fast > LIMIT_MS
        print(f"{method}, batch {batch}, {side} x {side}: {fast:.2f} ms; loop {plain:.0f} ms, {plain / fast:.0f} times")
    return int(slow)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
