"""Masks scored per second, and whether scoring delays prediction.

    python benchmarks/evaluate.py [masks] [files] [overlap]

`masks`: intersection and union of two stored masks (run lengths) of 640 x 480 pixels, by refcli and by numpy booleans;
the latter also with both masks unpacked beforehand, which an evaluation would have to pay for.
`files`: whole lines of a prediction file, from JSON to the row of the table.
`overlap`: the packaged model on synthetic scenes, with and without scoring, in alternating rounds.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from refcli.answers.jsonl import answer_to_json
from refcli.contracts.prediction import Answer, Target
from refcli.data.sources.synthetic.write import write_synthetic
from refcli.data.store.read import Store
from refcli.evaluation.evaluate import evaluate_split
from refcli.evaluation.mask_frames import IMAGE, overlap_in
from refcli.evaluation.metrics.conventions import choose_conventions
from refcli.evaluation.predictions import score_file
from refcli.evaluation.run import Scoring
from refcli.evaluation.sample_score import score_sample
from refcli.geometry.masks import decode_mask, encode_mask
from refcli.inference.predictor import Predictor
from refcli.inference.requests import Request

HEIGHT, WIDTH = 480, 640
NUM_MASKS = 100
ROUNDS = 5
SPLIT = "synthetic:test"


def draw_object(generator: np.random.Generator) -> np.ndarray:
    """A lobed blob of some 10 to 40 % of the image sides, with runs like those of a segmented object."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    centre_y, centre_x = generator.uniform(100, 380), generator.uniform(120, 520)
    radius = generator.uniform(30, 110) * (1 + 0.2 * np.sin(np.arctan2(y - centre_y, x - centre_x) * 7))
    return np.hypot(y - centre_y, x - centre_x) < radius


def per_second(work: Callable[[int], object]) -> float:
    """The best of several rounds, in processor time, which other programs do not affect."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        for number in range(NUM_MASKS):
            work(number)
        best = min(best, time.process_time() - start)
    return NUM_MASKS / best


def measure_masks() -> None:
    generator = np.random.default_rng(0)
    truth = [draw_object(generator) for _ in range(NUM_MASKS)]
    drawn = [np.roll(mask, (5, 9), (0, 1)) for mask in truth]
    pairs = [(encode_mask(one), encode_mask(other)) for one, other in zip(truth, drawn, strict=True)]

    def unpacked(number: int) -> tuple[int, int]:
        return int((truth[number] & drawn[number]).sum()), int((truth[number] | drawn[number]).sum())

    def counted(number: int) -> tuple[int, int]:
        one, other = truth[number], drawn[number]
        return np.count_nonzero(one & other), np.count_nonzero(one | other)

    def stored(number: int) -> tuple[int, int]:
        one, other = map(decode_mask, pairs[number])
        return int((one & other).sum()), int((one | other).sum())

    def ours(number: int) -> tuple[int, int]:
        return overlap_in(IMAGE, *pairs[number])[:2]

    assert all(unpacked(n) == counted(n) == stored(n) == ours(n) for n in range(NUM_MASKS))
    ways = {"numpy, from run lengths": stored, "numpy, unpacked": unpacked, "numpy, unpacked, count_nonzero": counted}
    speed = per_second(ours)
    print(f"refcli: {speed:,.0f} masks/s")
    for name, way in ways.items():
        found = per_second(way)
        print(f"{name}: {found:,.0f} masks/s; refcli is {speed / found:.1f} times as fast")


def measure_files(folder: Path) -> None:
    split = Store(folder / "store").split(SPLIT)
    with (folder / "truth.jsonl").open("w") as file:
        for one in (split[row] for row in range(len(split))):
            targets = tuple(Target(region.box_xyxy, 1.0, region.mask) for region in one.regions)
            answer = Answer(one.id, one.image, "", one.width, one.height, targets, not targets, 0.5, "truth")
            file.write(json.dumps(answer_to_json(answer)) + "\n")
    for names in ([], ["oneref384"], ["all"]):
        times = []
        for _ in range(ROUNDS):
            start = time.process_time()
            score_file(folder / "truth.jsonl", {SPLIT: split}, scoring=Scoring(choose_conventions(names)))
            times.append(time.process_time() - start)
        print(f"prediction file, conventions {names or ['original']}: {len(split) / min(times):,.0f} lines/s")


def measure_overlap(folder: Path) -> None:
    split = Store(folder / "store").split(SPLIT)
    predictor = Predictor("builtin")
    examples = [split[row] for row in range(len(split))]
    requests = [Request(one.id, one.image, one.expression, split.image_path(one)) for one in examples]
    answers = [answered.answer for answered in predictor.answer_requests(requests, raw=True)]
    start = time.process_time()
    for example, answer in zip(examples, answers, strict=True):
        score_sample(example, answer)
    scoring = (time.process_time() - start) / len(answers)
    start = time.process_time()
    for _ in predictor.answer_requests(requests, raw=True):
        pass
    predicting = (time.process_time() - start) / len(answers)
    print(
        f"processor time per sample: prediction {1000 * predicting:.2f} ms, scoring {1000 * scoring:.3f} ms "
        f"({100 * scoring / predicting:.1f} %)"
    )
    times: dict[str, list[float]] = {"prediction alone": [], "prediction and scoring": []}
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in predictor.answer_requests(requests, raw=True):
            pass
        times["prediction alone"].append(time.perf_counter() - start)
        start = time.perf_counter()
        evaluate_split(predictor, split, name=SPLIT)
        times["prediction and scoring"].append(time.perf_counter() - start)
    medians = {name: statistics.median(found) for name, found in times.items()}
    ratios = [both / alone for alone, both in zip(*times.values(), strict=True)]
    for name, seconds in medians.items():
        print(f"{name}: {len(requests) / seconds:.1f} samples/s")
    print(f"time with scoring / time without, median of {ROUNDS} pairs: {statistics.median(ratios):.3f}")


def main(*which: str) -> None:
    chosen = which or ("masks", "files", "overlap")
    if "masks" in chosen:
        measure_masks()
    with tempfile.TemporaryDirectory() as folder:
        if set(chosen) & {"files", "overlap"}:
            write_synthetic(Path(folder) / "store", size=80, splits=["test"])
        if "files" in chosen:
            measure_files(Path(folder))
        if "overlap" in chosen:
            measure_overlap(Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
