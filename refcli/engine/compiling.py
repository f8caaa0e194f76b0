"""Compiling parts of a model, and saying so when that fails."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from refcli.errors import TrainingError

RECOMPILE_SWITCHES = ("fail_on_recompile_limit_hit", "fail_on_cache_limit_hit")
"""The same setting under the names of newer and older versions of torch."""
COMPILER = ("torch._dynamo", "torch._inductor")
"""Where the compiler's own exceptions are defined; they have no common base class."""


def compile_parts(parts: Iterable[nn.Module]) -> None:
    """Have each part's forward compiled when it is first called.

    A part that would need compiling too often is an error afterwards, instead of quietly running uncompiled.
    """
    for switch in RECOMPILE_SWITCHES:
        if hasattr(torch._dynamo.config, switch):
            setattr(torch._dynamo.config, switch, True)
    for part in parts:
        part.compile()


@contextmanager
def compile_errors_told() -> Iterator[None]:
    """Turn a failure of the compiler into an error with a way out.

    Raises:
        TrainingError: compiling failed inside the block.
    """
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(COMPILER):
            raise
        raise TrainingError(
            f"the model could not be compiled: {(str(error).strip() or type(error).__name__).splitlines()[0]}",
            where="train.compile",
            hint="set train.compile=false; on a CPU, compiling also needs a C++ compiler",
        ) from error
