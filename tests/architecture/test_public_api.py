"""The names that packages export: lazy, complete, importable and typed."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import refcli

HEAVY = ("torch", "numpy", "pydantic", "yaml", "PIL", "pyarrow")
PACKAGES = (
    "refcli",
    *(
        package.name
        for package in pkgutil.walk_packages(refcli.__path__, "refcli.")
        if package.ispkg and hasattr(importlib.import_module(package.name), "__all__")
    ),
)

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


def test_importing_the_package_loads_nothing_heavy():
    code = f"import sys, refcli; print([name for name in {HEAVY!r} if name in sys.modules])"

    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert printed.strip() == "[]"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_exported_name_resolves(package):
    module = importlib.import_module(package)

    assert [name for name in module.__all__ if getattr(module, name, None) is None] == []
    assert set(module.__all__) <= set(dir(module))


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_see_the_names_that_are_exported(package):
    file = importlib.import_module(package).__file__
    tree = ast.parse(Path(str(file)).read_text(encoding="utf-8"))
    typed = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and str(node.module).startswith(f"{package}.")
        and node.module != "refcli.exports"
        for alias in node.names
    }

    assert typed == set(importlib.import_module(package).__all__) - {"__version__"}


def test_an_unknown_name_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match="module 'refcli' has no attribute 'Predicter'"):
        refcli.Predicter  # noqa: B018


def test_every_exported_function_and_class_has_a_docstring():
    exported = {name: getattr(refcli, name) for name in refcli.__all__ if name != "__version__"}

    assert [name for name, value in exported.items() if not value.__doc__] == []


def test_a_consumer_script_passes_mypy_strict(tmp_path):
    script = tmp_path / "consumer.py"
    script.write_text(CONSUMER, encoding="utf-8")
    wrong = tmp_path / "wrong.py"
    wrong.write_text("from refcli import Predicter\n", encoding="utf-8")
    settings = Path(__file__).resolve().parents[2] / "pyproject.toml"
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", str(settings)]

    checked = subprocess.run([*command, str(script), str(wrong)], cwd=tmp_path, capture_output=True, text=True)

    assert "consumer.py" not in checked.stdout, checked.stdout
    assert 'wrong.py:1: error: Module "refcli" has no attribute "Predicter"' in checked.stdout, checked.stdout
