"""A small synthetic store, and the true answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from refcli.answers.jsonl import answer_to_json
from refcli.contracts.example import Example
from refcli.contracts.prediction import Answer, Target
from refcli.data.sources.synthetic.write import write_synthetic
from refcli.data.store.read import Store
from refcli.data.store.write import write_manifest, write_split

SPLIT = "synthetic:test"


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Path:
    """48 expressions about 8 scenes."""
    out = tmp_path_factory.mktemp("store")
    write_synthetic(out, size=8, splits=["test"])
    return out


@pytest.fixture(scope="session")
def examples(store) -> list[Example]:
    """All of them."""
    split = Store(store).split(SPLIT)
    return [split[index] for index in range(len(split))]


@pytest.fixture
def make_store(tmp_path) -> Callable[..., Path]:
    """Write examples as a store without images; settings are those of `write_split`."""

    def make(examples: list[Example], **settings: int) -> Path:
        out = tmp_path / "made"
        dataset, split = examples[0].dataset, examples[0].split
        write_manifest(out, [write_split(out, dataset, split, examples, **settings)])
        return out

    return make


@pytest.fixture(scope="session")
def truth_of() -> Callable[[Example], Answer]:
    """The true answer to an example, with a certain probability of existence."""

    def answer(example: Example) -> Answer:
        targets = tuple(Target(region.box_xyxy, 1.0, region.mask) for region in example.regions)
        return Answer(
            id=example.id,
            image=example.image,
            expression=example.expression,
            width=example.width,
            height=example.height,
            targets=targets,
            no_target=not targets,
            no_target_score=float(not targets),
            weights="truth",
        )

    return answer


@pytest.fixture
def write_lines(tmp_path) -> Callable[..., Path]:
    """Write answers (or texts as they are) as a prediction file."""

    def write(answers: Iterable[Answer | str], name: str = "predictions.jsonl") -> Path:
        path = tmp_path / name
        lines = [one if isinstance(one, str) else json.dumps(answer_to_json(one)) for one in answers]
        path.write_text("".join(line + "\n" for line in lines))
        return path

    return write
