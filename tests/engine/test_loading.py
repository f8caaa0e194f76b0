"""Loading processes pass errors on complete, end on request, and outlive signals."""

from __future__ import annotations

import multiprocessing
import os
import signal
from contextlib import closing

import pytest
import torch

from refcli.engine.loading import iterate_batches
from refcli.errors import ImageError


class Squares:
    """Sample k is k squared; sample 7 is broken."""

    def __getitem__(self, key):
        if key == 7:
            raise ImageError("the image is cut off", where="seven.jpg", hint="fetch it again")
        return key * key


ORDER = [[1, 2], [3, 4], [5, 6], [7, 8]]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order_and_an_error_arrives_with_its_place(workers):
    batches = iterate_batches(Squares(), ORDER, torch.tensor, workers=workers)

    assert [next(batches).tolist() for _ in range(3)] == [[1, 4], [9, 16], [25, 36]]
    with pytest.raises(ImageError) as caught:
        next(batches)
    assert (caught.value.message, caught.value.where) == ("the image is cut off", "seven.jpg")
    assert not multiprocessing.active_children()


def test_closing_ends_the_loading_processes():
    with closing(iterate_batches(Squares(), ORDER, torch.tensor, workers=2)) as batches:
        next(batches)
        assert len(multiprocessing.active_children()) == 2

    assert not multiprocessing.active_children()


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_loading_processes_continue_when_the_process_group_gets_a_signal(which):
    endless = ([number % 6] for number in range(1000))
    with closing(iterate_batches(Squares(), endless, torch.tensor, workers=1)) as batches:
        next(batches)
        os.kill(multiprocessing.active_children()[0].pid, which)

        assert [next(batches).item() for _ in range(30)] == [(number % 6) ** 2 for number in range(1, 31)]
