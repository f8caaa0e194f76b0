"""The small releases of `tests/support/corpora.py`."""

from __future__ import annotations

import pytest
from corpora import CORPORA


@pytest.fixture(scope="session")
def corpora():
    """Row of the table of sources -> its corpus; see `corpora.CORPORA`."""
    return CORPORA
