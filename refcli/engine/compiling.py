"""Compile parts of a model, and explain the compiler's failures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from refcli.errors import TrainingError

RECOMPILE_SWITCHES = ("fail_on_recompile_limit_hit", "fail_on_cache_limit_hit")
"""The same setting under the names of newer and older versions of torch."""
RECOMPILE_LIMITS = ("recompile_limit", "cache_size_limit")
MAX_GRAPHS = 64
"""Compiled graphs of one part: for training and validation, with and without masked patches, and in each case for the
first batch, for any number of words, for any batch size, and for a single sample. torch's own limit is 8."""
COMPILER = ("torch._dynamo", "torch._inductor")
"""The modules of the compiler's exceptions, which have no common base class."""


def compile_parts(parts: Iterable[nn.Module]) -> None:
    """Compile each part's forward when it is first called.

    A part that is recompiled too often then raises an error, instead of silently running uncompiled.
    """
    config = torch._dynamo.config
    switch = next(name for name in RECOMPILE_SWITCHES if hasattr(config, name))
    limit = next(name for name in RECOMPILE_LIMITS if hasattr(config, name))
    setattr(config, switch, True)
    setattr(config, limit, max(MAX_GRAPHS, getattr(config, limit)))
    for part in parts:
        part.compile()


@contextmanager
def explain_compile_errors() -> Iterator[None]:
    """Turn a failure of the compiler into an error with a hint.

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
