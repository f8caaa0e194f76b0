"""Writing synthetic splits: images and store; the bytes do not depend on the number of workers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from refcli.contracts.example import Example
from refcli.data.sources.synthetic.examples import DATASET, SCENES_PER_FOLDER, image_path, render_scene
from refcli.data.sources.synthetic.settings import SyntheticSettings
from refcli.data.store.layout import MANIFEST, examples_to_table, read_manifest
from refcli.data.store.write import Listing, SplitSummary, list_splits, new_split
from refcli.errors import DataError, UsageError
from refcli.files import explain_write_errors, temporary_file

SCENES_PER_TASK = 50
HELD_OUT_SHARE = 20
"""Ratio of the training split's size to that of the validation and test splits."""

Progress = Callable[[str, int, int], None]
"""Called with (split, scenes written, total scenes)."""


@dataclass(frozen=True)
class _Task:
    settings: SyntheticSettings
    root: Path
    split: str
    first: int
    last: int


def split_sizes(size: int, splits: Sequence[str] | None) -> dict[str, int]:
    """Scenes of each split: `size` for every named one; without names train, and val and test of a twentieth."""
    if splits:
        return dict.fromkeys(splits, size)
    held_out = max(1, size // HELD_OUT_SHARE)
    return {"train": size, "val": held_out, "test": held_out}


def write_synthetic(
    out: Path,
    *,
    size: int,
    seed: int | None = None,
    splits: Sequence[str] | None = None,
    workers: int = 1,
    settings: SyntheticSettings | None = None,
    progress: Progress | None = None,
) -> tuple[SplitSummary, ...]:
    """Generate scenes into the store `out`: images below `<out>/synthetic/images`, splits in the manifest.

    Args:
        out: the store, created if it does not exist.
        size: scenes in each named split, or in train.
        seed: replaces the seed of `settings`.
        splits: names of the splits; None for train, val and test.
        workers: processes that render; the result does not depend on it.
        settings: the distribution of scenes.
        progress: called after every chunk of scenes.

    Raises:
        UsageError: `size` or `workers` below 1.
        DataError: an image cannot be written.
    """
    if size < 1 or workers < 1:
        raise UsageError(f"size ({size}) and workers ({workers}) must be at least 1", where="synthetic")
    settings = settings or SyntheticSettings()
    if seed is not None:
        settings = SyntheticSettings.model_validate({**settings.model_dump(), "seed": seed})
    origin = {"source": DATASET, "settings": settings.model_dump(mode="json")}
    roots = {split: _image_root(Path(out), split, origin) for split in split_sizes(size, splits)}
    with ExitStack() as stack:
        listings = []
        for split, scenes in split_sizes(size, splits).items():
            writer = stack.enter_context(new_split(Path(out), DATASET, split))
            root = Path(out) / (roots[split] or DATASET)
            for task, examples in _render_split(root, settings, split, scenes, workers):
                writer.write(examples_to_table(examples))
                if progress:
                    progress(split, task.last, scenes)
            listings.append(Listing(writer.finish(), images=roots[split], origin=origin, writer=writer))
        list_splits(Path(out), listings)
    return tuple(listing.summary for listing in listings)


def _image_root(out: Path, split: str, origin: Mapping[str, Any]) -> str | None:
    """The image root of a split, as in the manifest: a new one if the existing images are of another origin.

    Images that a split of the store needs are never overwritten: other splits may have been made from the old one.
    """
    if not (out / MANIFEST).is_file():
        return None
    entry = read_manifest(out)["datasets"].get(DATASET, {"splits": {}})["splits"].get(split)
    if entry is None:
        return None
    if entry.get("origin") == origin:
        return str(entry["images_at"]) if entry.get("images_at") else None
    return f"{DATASET}/{hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:12]}"


def _render_split(
    root: Path, settings: SyntheticSettings, split: str, scenes: int, workers: int
) -> Iterator[tuple[_Task, list[Example]]]:
    """Write the images of a split below `root`; yield its examples in order, task by task."""
    for index in range(0, scenes, SCENES_PER_FOLDER):
        (root / image_path(split, index)).parent.mkdir(parents=True, exist_ok=True)
    tasks = [
        _Task(settings, root, split, first, min(first + SCENES_PER_TASK, scenes))
        for first in range(0, scenes, SCENES_PER_TASK)
    ]
    yield from zip(tasks, _run(tasks, workers), strict=True)


def _run(tasks: Sequence[_Task], workers: int) -> Iterator[list[Example]]:
    """The examples of every task, in the order of the tasks."""
    if workers == 1 or len(tasks) == 1:
        yield from map(_write_scenes, tasks)
        return
    with get_context("spawn").Pool(min(workers, len(tasks)), initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        yield from pool.imap(_write_scenes, tasks)


def _write_scenes(task: _Task) -> list[Example]:
    examples: list[Example] = []
    for index in range(task.first, task.last):
        rendered = render_scene(task.settings, task.split, index)
        _write_jpeg(task.root / image_path(task.split, index), rendered.image, task.settings.jpeg_quality)
        examples += rendered.examples
    return examples


def _write_jpeg(path: Path, image: np.ndarray, quality: int) -> None:
    """Write an RGB image without chroma subsampling, atomically."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    is_done, data = cv2.imencode(".jpg", image[..., ::-1], options)
    if not is_done:
        raise DataError("an image cannot be encoded as JPEG", where=str(path))
    with explain_write_errors("an image", path, error=DataError), temporary_file(path) as temporary:
        temporary.write_bytes(data.tobytes())
        temporary.replace(path)
