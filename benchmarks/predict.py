"""Pairs per second of the Predictor: the packaged model, and BEiT-3 base at 384 with random weights.

    python benchmarks/predict.py [builtin|base|base+mask]...

Reads, decodes and letterboxes files, runs the model and encodes masks: everything that `refcli predict` does except
printing. fp32 and bf16 are measured in turn within one run, so their ratio is more reliable than the absolute figures.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from refcli.config.schema import HeadChoice, ModelSettings, TowerSettings
from refcli.data.sources.synthetic import SyntheticSettings, render_scene
from refcli.engine.device import keep_freed_pages
from refcli.grounder import Grounder
from refcli.inference.predictor import Predictor
from refcli.inference.requests import Request
from refcli.text.tokenizer import Tokenizer
from refcli.weights.directory import LoadedWeights, load_weights

ROUNDS = 3


def load(which: str) -> LoadedWeights:
    if which == "builtin":
        return load_weights("builtin")
    settings = ModelSettings(tower=TowerSettings(), head=HeadChoice(settings={"res": which == "base+mask"}))
    return LoadedWeights(Grounder.from_settings(settings), settings, Tokenizer.load(settings.text), which, {})


def measure(which: str, folder: Path, *, pairs: int, batch_sizes: tuple[int, ...]) -> None:
    paths = []
    for number in range(pairs):
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(render_scene(SyntheticSettings(), "bench", number).image).save(paths[-1])
    requests = [Request(str(n), str(path), "the red star left of the circle", path) for n, path in enumerate(paths)]
    for batch_size in batch_sizes:
        speeds: dict[str, list[float]] = {"fp32": [], "bf16": []}
        for _ in range(ROUNDS):
            for precision, found in speeds.items():
                predictor = Predictor(load(which), device="cpu", precision=precision, batch_size=batch_size)
                list(predictor.predict_many(requests[:batch_size]))
                start = time.perf_counter()
                list(predictor.predict_many(requests))
                found.append(pairs / (time.perf_counter() - start))
        medians = {precision: statistics.median(found) for precision, found in speeds.items()}
        ratio = medians["bf16"] / medians["fp32"]
        shown = ", ".join(f"{precision} {speed:.2f} pairs/s" for precision, speed in medians.items())
        print(f"{which}, batch {batch_size}: {shown}, ratio {ratio:.2f}", flush=True)


def main(*which: str) -> None:
    keep_freed_pages()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        for name in which or ("builtin", "base", "base+mask"):
            measure(name, Path(folder), pairs=256 if name == "builtin" else 16, batch_sizes=(1, 8))


if __name__ == "__main__":
    main(*sys.argv[1:])
