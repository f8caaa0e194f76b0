"""A part that cannot be compiled is an error with a hint, never a silent slow run."""

from __future__ import annotations

import pytest
import torch

from refcli.engine.compiling import compile_parts, explain_compile_errors
from refcli.errors import TrainingError


class Reader(torch.nn.Module):
    """Depends on a word, so that every new word needs compiling again."""

    word = ""

    def forward(self, x):
        return x + (1 if self.word == "never" else 2)


def test_a_part_that_is_compiled_again_and_again_is_an_error():
    part = Reader()
    compile_parts([part])
    part.compile(backend="eager")

    with (
        torch._dynamo.config.patch(recompile_limit=2),
        pytest.raises(TrainingError, match="could not be compiled") as caught,
        explain_compile_errors(),
    ):
        for number in range(5):
            part.word = str(number)
            part(torch.ones(1))
    assert "train.compile=false" in caught.value.hint


def test_other_errors_pass_unchanged():
    with pytest.raises(ValueError, match="mine"), explain_compile_errors():
        raise ValueError("mine")
