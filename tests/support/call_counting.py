"""Counts calls, as a measure of work that does not depend on the machine or its load."""

import sys
from collections.abc import Callable


def num_calls(work: Callable[[], object]) -> int:
    """Calls of Python and C functions that some work makes."""
    count = 0

    def watch(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    previous = sys.getprofile()
    sys.setprofile(watch)
    try:
        work()
    finally:
        sys.setprofile(previous)
    return count
