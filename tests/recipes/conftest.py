"""A store of plain squares, and settings that train on it in seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from refcli.config.load import validate
from refcli.config.schema import FinetuneSettings
from refcli.contracts.example import Example, Region
from refcli.data.store.write import write_manifest, write_split
from refcli.geometry.masks import encode_mask

SIDE = 32


def draw_squares(out: Path, split: str, count: int, seed: int) -> list[Example]:
    """`count` images with a red and a blue square, one expression for each."""
    generator = np.random.default_rng(seed)
    examples = []
    for number in range(count):
        image = np.full((SIDE, SIDE, 3), 255, np.uint8)
        path = f"images/{split}-{number}.png"
        left = int(generator.integers(1, 5))
        boxes = {"red": (left, 4, left + 10, 14), "blue": (17, 16 + left % 3, 29, 28 + left % 3)}
        for colour, (x1, y1, x2, y2) in boxes.items():
            image[y1:y2, x1:x2] = (255, 0, 0) if colour == "red" else (0, 0, 255)
        file = out / "squares" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
        for colour, (x1, y1, x2, y2) in boxes.items():
            mask = np.zeros((SIDE, SIDE), dtype=bool)
            mask[y1:y2, x1:x2] = True
            region = Region(box_xyxy=(float(x1), float(y1), float(x2), float(y2)), mask=encode_mask(mask))
            examples.append(
                Example(
                    id=f"{split}/{number}/{colour}",
                    dataset="squares",
                    split=split,
                    image=path,
                    image_id=f"{split}/{number}",
                    width=SIDE,
                    height=SIDE,
                    expression=f"the {colour} square",
                    regions=(region,),
                    kind="colour",
                )
            )
    return examples


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Path:
    """24 samples for training and 8 for validation."""
    out = tmp_path_factory.mktemp("store")
    summaries = [
        write_split(out, "squares", "train", draw_squares(out, "train", 12, seed=1)),
        write_split(out, "squares", "val", draw_squares(out, "val", 4, seed=2)),
    ]
    write_manifest(out, summaries)
    return out


@pytest.fixture(scope="session")
def half_empty(tmp_path_factory) -> Path:
    """16 samples for training and 16 for validation; every second one asks for a green square, which is never there."""
    out = tmp_path_factory.mktemp("half_empty")
    for split, seed in (("train", 1), ("val", 2)):
        examples = [
            example if number % 2 else replace(example, expression="the green square", regions=())
            for number, example in enumerate(draw_squares(out, split, 8, seed))
        ]
        write_manifest(out, [write_split(out, "squares", split, examples)])
    return out


@pytest.fixture
def settings() -> FinetuneSettings:
    """Two layers of width 32 at 32 pixels, with drop-path and random flips."""
    return validate(
        FinetuneSettings,
        {
            "model": {
                "tower": {
                    "image_size": SIDE,
                    "patch_size": 8,
                    "dim": 32,
                    "layers": 2,
                    "heads": 2,
                    "ffn_dim": 64,
                    "vocabulary_size": 1000,
                    "max_text_positions": 66,
                    "drop_path": 0.2,
                    "init": "scaled",
                },
                "head": {"name": "oneref", "settings": {"res": True, "existence": True, "similarity_scale": 10.0}},
            },
            "data": {
                "train": ["squares:train"],
                "validation": ["squares:val"],
                "workers": 1,
                "augment": {"flip": 0.5, "translate": True, "min_scale": 0.8},
            },
            "optim": {"lr": 3e-3, "warmup_steps": 2},
            "train": {
                "steps": 6,
                "batch_size": 5,
                "precision": "fp32",
                "ema_decay": 0.9,
                "log_every": 1,
                "save_every": 100,
                "validate_every": 2,
                "device": "cpu",
            },
        },
        where="this test",
    )


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny models are slower on two threads, and much slower where other programs want the second core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
