"""The small releases of `corpora.py`, which is no test module and in no package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def corpora():
    """Row of the table of sources -> its corpus; see `corpora.CORPORA`."""
    spec = importlib.util.spec_from_file_location("corpora", Path(__file__).with_name("corpora.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules["corpora"] = module
    spec.loader.exec_module(module)
    yield module.CORPORA
    del sys.modules["corpora"]
