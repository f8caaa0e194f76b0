"""The linter, the formatter and the type checker have nothing to say, and users of the package get its types."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONSUMER = """
from collections.abc import Iterator
from pathlib import Path

import refcli
from refcli import Answer, Batch, Collate, Example, Grounder, GroundingDataset, ModelSettings, Predictor, Store, Target


def best_boxes(images: list[Path], expression: str) -> Iterator[tuple[float, float, float, float]]:
    predictor = Predictor("builtin", device="cpu")
    for image in images:
        for answer in predictor.predict(image, expression):
            for target in answer.targets:
                yield target.box_xyxy


def patch_vectors(batch: Batch) -> tuple[int, ...]:
    loaded: refcli.LoadedWeights = refcli.load_weights("builtin")
    features = loaded.grounder.features(batch.images, batch.token_ids, batch.token_is_pad)
    return tuple(features.patches.shape)


def first_loss(store: Store, settings: ModelSettings, tokenizer: refcli.Tokenizer) -> float:
    samples = GroundingDataset(store, ["synthetic:train"], tower=settings.tower, augment=None)
    batch = Collate(tokenizer)([samples[0, 0], samples[1, 0]])
    return float(sum(Grounder.from_settings(settings)(batch, 0).values()))


def accuracy(examples: list[Example]) -> float:
    answers = [Answer.to(one, [Target((0, 0, 9, 9), score=1.0)]) for one in examples]
    return refcli.score_predictions(answers, examples)["acc50"]


def train(folder: Path) -> Path:
    refcli.prepare("synthetic", out=folder / "store", settings={"size": 20})
    settings = refcli.load_finetune("synthetic_tiny", ["train.steps=2"])
    try:
        return refcli.finetune(settings, store=folder / "store", out=folder / "run")
    except refcli.RefcliError as error:
        raise SystemExit(f"{error.message} {error.hint}") from error
"""


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "check", "--no-cache", "."),
        ("ruff", "format", "--no-cache", "--check", "."),
        ("mypy", "--strict", "refcli"),
    ],
    ids=["ruff check", "ruff format", "mypy"],
)
def test_the_tool_is_content(command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr


def test_a_consumer_script_passes_mypy_strict(tmp_path):
    script = tmp_path / "consumer.py"
    script.write_text(CONSUMER, encoding="utf-8")
    wrong = tmp_path / "wrong.py"
    wrong.write_text("from refcli import Predicter\n", encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", str(script), str(wrong)]

    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert "consumer.py" not in checked.stdout, checked.stdout
    assert 'wrong.py:1: error: Module "refcli" has no attribute "Predicter"' in checked.stdout, checked.stdout
