"""Shared paths, and one thread for everything: the models of tests are too small to be divided."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; also for the programs that tests start
FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Golden values that the tests compare with."""
    return FIXTURES
