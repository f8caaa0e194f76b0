"""The figures of refcli beside those of other benchmarks' evaluators, on the same random tables of samples.

    python benchmarks/peer_evaluators.py

Each function below computes the figures of one published evaluator, written here once more as plain loops over boxes
and bitmaps, without any code of refcli; COCO's average precision is pycocotools' own. Eight tables of 150 samples;
printed is the largest difference of each figure. Every sample has up to four true and six answered boxes with masks.
"""

import contextlib
import io
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.optimize import linear_sum_assignment

from refcli.contracts.example import RLE, Example, Region
from refcli.contracts.prediction import Answer, Target
from refcli.evaluation.metrics.measure import break_down, measure
from refcli.evaluation.sample_columns import ScoreColumns
from refcli.evaluation.sample_score import score_sample

WIDTH, HEIGHT = 400, 300
NUM_SAMPLES, SEEDS = 150, range(8)
SENTENCES = 3
"""Sentences about each image."""
DESCRIPTIONS, KINDS = 6, 5
THRESHOLD = 0.5
TEN = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]

Y, X = np.mgrid[:HEIGHT, :WIDTH] + 0.5
Box = tuple[float, float, float, float]


@dataclass
class Sample:
    """One sample as plain values; masks are ellipses in the boxes."""

    image: int
    description: int
    kind: int
    truth: list[Box]
    ignored: np.ndarray | None
    found: list[Box]
    scores: list[float]
    no_target: bool
    existence: float

    @property
    def kept(self) -> list[Box]:
        return [box for box, score in zip(self.found, self.scores, strict=True) if score >= THRESHOLD and not self.none]

    @property
    def none(self) -> bool:
        return self.no_target or not self.found


def random_table(seed: int, num_samples: int = NUM_SAMPLES) -> list[Sample]:
    generator = np.random.default_rng(seed)

    def random_box() -> Box:
        x, y = generator.uniform(0, WIDTH - 80), generator.uniform(0, HEIGHT - 80)
        return x, y, x + generator.uniform(60, WIDTH - x), y + generator.uniform(60, HEIGHT - y)

    samples = []
    for number in range(num_samples):
        truth = [random_box() for _ in range(generator.choice(5, p=[0.25, 0.45, 0.1, 0.1, 0.1]))]
        near = [tuple(np.array(box) + generator.normal(0, 6, 4)) for box in truth if generator.random() < 0.8]
        found = [*near, *(random_box() for _ in range(generator.integers(0, 3)))]
        ignored = bitmap([random_box()]) if generator.random() < 0.3 else None
        order = generator.permutation(len(found))
        samples.append(
            Sample(
                image=number // SENTENCES,
                description=number * 7 % DESCRIPTIONS,
                kind=int(generator.integers(KINDS)),
                truth=truth,
                ignored=ignored,
                found=[found[at] for at in order],
                scores=generator.uniform(0.2, 1, len(found)).tolist(),
                no_target=bool(generator.random() < (0.1 if truth else 0.5)),
                existence=float(generator.random()),
            )
        )
    return samples


def bitmap(boxes: Iterable[Box]) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for left, top, right, bottom in boxes:
        radius_x, radius_y = max((right - left) / 2, 0.1), max((bottom - top) / 2, 0.1)
        mask |= ((X - (left + right) / 2) / radius_x) ** 2 + ((Y - (top + bottom) / 2) / radius_y) ** 2 <= 1
    return mask


def run_lengths(mask: np.ndarray) -> RLE:
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return RLE((HEIGHT, WIDTH), encoded["counts"])


def refcli_columns(table: Sequence[Sample], *, has_existence: bool = False) -> ScoreColumns:
    """The samples as refcli scores them."""
    scores = []
    for number, sample in enumerate(table):
        example = Example(
            id=f"rrefcoco/{sample.image}/{number}",
            dataset="rrefcoco",
            split="test",
            image=str(sample.image),
            image_id=str(sample.image),
            width=WIDTH,
            height=HEIGHT,
            expression=f"description {sample.description}",
            regions=tuple(Region(box, run_lengths(bitmap([box]))) for box in sample.truth),
            kind=str(sample.kind),
            ignored=None if sample.ignored is None else run_lengths(sample.ignored),
        )
        targets = tuple(
            Target(box, score, run_lengths(bitmap([box])))
            for box, score in zip(sample.found, sample.scores, strict=True)
        )
        absent = 1 - sample.existence if has_existence else None
        answer = Answer(example.id, example.image, "", WIDTH, HEIGHT, targets, sample.none, absent, "random")
        scores.append(score_sample(example, answer, score_threshold=THRESHOLD))
    return ScoreColumns.of(scores)


def iou(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [max(box[2] - box[0], 0) * max(box[3] - box[1], 0) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def around(boxes: Sequence[Box]) -> Box:
    columns = list(zip(*boxes, strict=True))
    return min(columns[0]), min(columns[1]), max(columns[2]), max(columns[3])


def mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


def ref_l4(table: Sequence[Sample]) -> dict[str, float]:
    """Accuracies above thresholds; all, by size of the true box, and averaged over classes."""
    pairs = [
        (around(s.truth), iou(around(s.truth), around(s.found)) if s.found else 0.0, s.kind) for s in table if s.truth
    ]

    def accuracy(ious: Sequence[float], thresholds: Sequence[float]) -> float:
        return mean(mean(value > threshold for value in ious) for threshold in thresholds)

    ious = [value for _, value, _ in pairs]
    figures = {f"acc{round(100 * t)}": accuracy(ious, [t]) for t in (0.5, 0.75, 0.9)} | {"macc": accuracy(ious, TEN)}
    sizes, classes = defaultdict(list), defaultdict(list)
    for box, value, kind in pairs:
        side = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
        sizes["box < 128 px" if side < 128 else "box 128-256 px" if side <= 256 else "box > 256 px"].append(value)
        classes[kind].append(value)
    for name, part in sizes.items():
        figures |= {f"{name} acc50": accuracy(part, [0.5]), f"{name} macc": accuracy(part, TEN)}
    figures["acc50_kind_mean"] = mean(accuracy(part, [0.5]) for part in classes.values())
    figures["macc_kind_mean"] = mean(accuracy(part, TEN) for part in classes.values())
    return figures


def grounding_me(table: Sequence[Sample]) -> dict[str, float]:
    """Accuracies over all samples; a rejection has IoU 1 where there is no target."""
    ious = []
    for sample in table:
        if not sample.truth:
            ious.append(1.0 if sample.none else 0.0)
        else:
            ious.append(0.0 if sample.none else iou(around(sample.truth), sample.found[0]))
    figures = {f"acc{round(100 * t)}": mean(value >= t for value in ious) for t in (0.5, 0.75, 0.9)}
    return {**figures, "macc": mean(mean(value >= t for value in ious) for t in TEN), "box_miou": mean(ious)}


def ref_adv(table: Sequence[Sample]) -> dict[str, float]:
    """Accuracies of the first box."""
    ious = [iou(around(s.truth), s.found[0]) if s.found else 0.0 for s in table if s.truth]
    return {f"acc{round(100 * t)}": mean(value >= t for value in ious) for t in (0.5, 0.75, 0.9)}


def lmms_eval(table: Sequence[Sample]) -> dict[str, float]:
    """The share of boxes with their centre in the true box."""
    hits = []
    for sample in table:
        if sample.truth:
            left, top, right, bottom = around(sample.truth)
            box = around(sample.found) if sample.found else (-9.0, -9.0, -9.0, -9.0)
            x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            hits.append(left <= x <= right and top <= y <= bottom)
    return {"center_acc": mean(hits)}


def human_ref(table: Sequence[Sample]) -> dict[str, float]:
    """Recall, precision and DensityF1 of a greedy matching in the order of the true boxes; rejection score."""
    rows = defaultdict(list)
    for sample in table:
        if not sample.truth:
            rows["grec_n_acc"].append(float(not sample.kept))
            continue
        by_threshold = []
        for threshold in TEN:
            used: set[int] = set()
            for true in sample.truth:
                best, place = 0.0, -1
                for at, box in enumerate(sample.kept):
                    if at not in used and iou(true, box) > best and iou(true, box) >= threshold:
                        best, place = iou(true, box), at
                if place >= 0:
                    used.add(place)
            recall = len(used) / len(sample.truth)
            precision = len(used) / len(sample.kept) if sample.kept else 0.0
            f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
            penalty = min(1.0, len(sample.truth) / len(sample.kept)) if sample.kept else 0.0
            by_threshold.append((recall, precision, f1 * penalty))
        for name, values in zip(
            ("set_recall", "set_precision", "density_f1"), zip(*by_threshold, strict=True), strict=True
        ):
            rows[name].append(mean(values))
            rows[name + ("_50" if name == "density_f1" else "50")].append(values[0])
    return {name: mean(values) for name, values in rows.items()}


def open_ref(table: Sequence[Sample]) -> dict[str, float]:
    """F1 per sample of the assignment with the largest sum of IoUs."""
    f1s = []
    for sample in table:
        if sample.truth:
            matrix = np.array([[iou(box, true) for true in sample.truth] for box in sample.kept])
            rows, columns = linear_sum_assignment(-matrix) if sample.kept else ((), ())
            right = sum(matrix[row, column] >= 0.5 for row, column in zip(rows, columns, strict=True))
            f1s.append(2 * right / (len(sample.truth) + len(sample.kept)))
    return {"set_f1_50": mean(f1s)}


def p_bench(table: Sequence[Sample]) -> dict[str, float]:
    """F1 per sample of masks: the mean over ten thresholds, then over samples with a target."""
    f1s = []
    for sample in table:
        if sample.truth:
            counted = True if sample.ignored is None else ~sample.ignored
            found, truth = ([bitmap([box]) & counted for box in boxes] for boxes in (sample.kept, sample.truth))
            matrix = np.array([[(one & two).sum() / max((one | two).sum(), 1) for two in truth] for one in found])
            pairs = matrix[linear_sum_assignment(-matrix)] if found else np.zeros(0)
            f1s.append(mean(2 * (pairs >= threshold).sum() / (len(found) + len(truth)) for threshold in TEN))
    return {"set_f1_mask": mean(f1s)}


def sa_co(table: Sequence[Sample]) -> dict[str, float]:
    """Positive micro F1 at ten thresholds, of boxes and of masks, times the image-level correlation."""
    counts = {"box": np.zeros((10, 3)), "mask": np.zeros((10, 3))}
    exists, finds = [], []
    for sample in table:
        exists.append(bool(sample.truth))
        finds.append(bool(sample.kept))
        for name, count in counts.items():
            if not sample.truth:
                continue
            matrix = np.zeros((len(sample.kept), len(sample.truth)))
            for (row, box), (column, true) in itertools.product(enumerate(sample.kept), enumerate(sample.truth)):
                if name == "box":
                    matrix[row, column] = iou(box, true)
                else:
                    counted = True if sample.ignored is None else ~sample.ignored
                    one, other = bitmap([box]) & counted, bitmap([true]) & counted
                    matrix[row, column] = (one & other).sum() / max((one | other).sum(), 1)
            pairs = matrix[linear_sum_assignment(-matrix)]
            for at, threshold in enumerate(TEN):
                right = int((pairs >= threshold).sum())
                count[at] += right, len(sample.kept) - right, len(sample.truth) - right
    figures = {}
    for name, count in counts.items():
        precision, recall = count[:, 0] / (count[:, 0] + count[:, 1]), count[:, 0] / (count[:, 0] + count[:, 2])
        figures[f"pmf1_{name}"] = float(np.mean(2 * precision * recall / np.maximum(precision + recall, 1e-9)))
        figures[f"cgf1_{name}"] = figures[f"pmf1_{name}"] * float(np.corrcoef(exists, finds)[0, 1])
    return figures


def robust_ris(table: Sequence[Sample]) -> dict[str, float]:
    """rIoU and mRR of R-RefCOCO, image by image (here one object each)."""
    rious, rates = [], []
    for _, group in itertools.groupby(table, lambda sample: sample.image):
        above = below = rejected = num_absent = num_there = 0
        for sample in group:
            counted = True if sample.ignored is None else ~sample.ignored
            drawn = bitmap(() if sample.none else sample.found) & counted
            if sample.truth:
                true = bitmap(sample.truth) & counted
                above, below = above + int((drawn & true).sum()), below + int((drawn | true).sum())
                num_there += 1
            else:
                below += int(drawn.sum())
                rejected, num_absent = rejected + (not drawn.any()), num_absent + 1
        if num_there:
            rious.append(above / below)
        if num_absent:
            rates.append(rejected / num_absent)
    return {"riou": mean(rious), "mrr": mean(rates)}


def lisa(table: Sequence[Sample]) -> dict[str, float]:
    """ReasonSeg's gIoU (mean IoU) and cIoU (sum over sum), without ignored pixels, over samples with a target."""
    ious, sums = [], np.zeros(2)
    for sample in table:
        if sample.truth:
            labels = bitmap(sample.truth).astype(int)
            if sample.ignored is not None:
                labels[sample.ignored] = 255
            drawn = bitmap(sample.found)[labels != 255]
            true = labels[labels != 255] == 1
            above, below = (drawn & true).sum(), (drawn | true).sum()
            ious.append(above / below if below else 1.0)
            sums += above, below
    return {"mask_miou": mean(ious), "mask_oiou": float(sums[0] / sums[1])}


def d_cube(table: Sequence[Sample]) -> dict[str, float]:
    """pycocotools' AP with descriptions as categories."""

    def xywh(box: Box) -> list[float]:
        return [box[0], box[1], box[2] - box[0], box[3] - box[1]]

    annotations = [
        {"id": 0, "image_id": s.image, "category_id": s.description + 1, "bbox": xywh(box), "iscrowd": 0}
        for s in table
        for box in s.truth
    ]
    for number, one in enumerate(annotations, 1):
        one |= {"id": number, "area": one["bbox"][2] * one["bbox"][3]}
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": number} for number in sorted({s.image for s in table})],
        "categories": [{"id": number + 1, "name": str(number)} for number in range(DESCRIPTIONS)],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found = truth.loadRes(
            [
                {"image_id": s.image, "category_id": s.description + 1, "bbox": xywh(box), "score": score}
                for s in table
                for box, score in zip(s.found, s.scores, strict=True)
            ]
        )
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"coco_map": float(evaluation.stats[0])}


def fine_cops(table: Sequence[Sample]) -> dict[str, float]:
    """AUROC of the best score: how often a sample with a target has a higher one than a sample without."""
    best = [(max(sample.scores, default=0.0), bool(sample.truth)) for sample in table]
    return {"auroc": _area(best)}


def existence(table: Sequence[Sample]) -> dict[str, float]:
    """AUROC of a probability of existence, and the correlation of the decision with the truth."""
    decisions = [[not sample.none for sample in table], [bool(sample.truth) for sample in table]]
    return {
        "auroc": _area([(sample.existence, bool(sample.truth)) for sample in table]),
        "mcc": float(np.corrcoef(*decisions)[0, 1]),
    }


def _area(scored: Sequence[tuple[float, bool]]) -> float:
    there = [score for score, is_there in scored if is_there]
    absent = [score for score, is_there in scored if not is_there]
    return mean((one > other) + 0.5 * (one == other) for one in there for other in absent)


PEERS = {
    ref_l4: "ref-l4",
    grounding_me: "groundingme",
    ref_adv: "first-box",
    lmms_eval: "original",
    human_ref: "original",
    open_ref: "original",
    p_bench: "original",
    sa_co: "original",
    robust_ris: "original",
    lisa: "original",
    d_cube: "original",
    fine_cops: "original",
}
"""Evaluator -> the convention of refcli that counts like it."""


def compare(table: Sequence[Sample]) -> dict[str, tuple[float, float]]:
    """(refcli's value, the peer's) by peer and figure."""
    columns, with_existence = refcli_columns(table), refcli_columns(table, has_existence=True)
    ours = {convention: dict(measure(columns, convention).metrics) for convention in set(PEERS.values())}
    for name, part in break_down(columns)["box_pixels"].items():
        strict = measure(columns[_rows_of(columns, name)], "ref-l4").metrics
        assert part.count == int(_rows_of(columns, name).sum())
        ours["ref-l4"] |= {f"{name} {figure}": strict[figure] for figure in ("acc50", "macc")}
    of_kinds = ("acc50_kind_mean", "macc_kind_mean")
    ours["ref-l4"] |= {figure: ours["original"][figure] for figure in of_kinds}  # no IoU is equal to a threshold
    found = {
        f"{peer.__name__} {name}": (ours[convention][name], value)
        for peer, convention in PEERS.items()
        for name, value in peer(table).items()
    }
    measured = measure(with_existence).metrics
    return found | {f"existence {name}": (measured[name], value) for name, value in existence(table).items()}


def _rows_of(columns: ScoreColumns, name: str) -> np.ndarray:
    assert columns.box_side is not None
    side = columns.box_side
    small, large = side < 128, side > 256
    return {"box < 128 px": small, "box > 256 px": large}.get(name, (side >= 128) & ~large)


def main() -> None:
    largest: dict[str, float] = defaultdict(float)
    for seed in SEEDS:
        for name, (ours, theirs) in compare(random_table(seed)).items():
            largest[name] = max(largest[name], abs(ours - theirs))
    for name, difference in largest.items():
        print(f"{name:32s} {difference:.1e}")
    print(f"largest of all: {max(largest.values()):.1e} ({len(SEEDS)} tables of {NUM_SAMPLES} samples)")


if __name__ == "__main__":
    main()
