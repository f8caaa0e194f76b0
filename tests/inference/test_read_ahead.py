"""Images are decoded ahead, once, in order, and a dialogue is answered at once."""

from __future__ import annotations

import queue
import threading
import time

import numpy as np
import pytest

from refcli.errors import ImageError
from refcli.geometry.frame import Frame
from refcli.inference.read_ahead import DecodedImage, ReadAhead
from refcli.inference.requests import Request

IMAGE = DecodedImage(np.zeros((3, 8, 8), np.float32), Frame.fit(8, 8, 8, 8))


def test_neighbouring_requests_about_one_image_decode_it_once():
    decoded = []

    def decode(source):
        decoded.append(source)
        return IMAGE

    requests = [Request(f"{image}{n}", image, "x") for image in ("a", "b", "c") for n in range(20)]
    batches = list(ReadAhead(decode, batch_size=7).batches(requests))
    assert sorted(decoded) == ["a", "b", "c"]
    assert [item.request.id for batch in batches for item in batch] == [request.id for request in requests]


def test_order_is_kept_when_early_images_take_longest():
    def decode(source):
        time.sleep(0.02 if source == "0" else 0.0)
        return IMAGE

    requests = [Request(str(n), str(n), "x") for n in range(30)]
    batches = list(ReadAhead(decode, batch_size=4).batches(requests))
    assert [item.request.id for batch in batches for item in batch] == [str(n) for n in range(30)]


def test_errors_keep_their_place_and_do_not_fill_the_batch():
    def decode(source):
        if source == "bad":
            raise ImageError("broken", where="bad")
        return IMAGE

    names = ["good", "bad", "good", "bad", "good"]
    (batch, rest) = ReadAhead(decode, batch_size=2).batches(Request(str(n), name, "x") for n, name in enumerate(names))
    assert [item.error for item in batch] == [None, "broken (bad)", None]
    assert [item.error for item in rest] == ["broken (bad)", None]


def test_a_partial_batch_is_emitted_while_the_source_is_silent():
    lines: queue.Queue[Request | None] = queue.Queue()
    batches = ReadAhead(lambda source: IMAGE, batch_size=64).batches(iter(lines.get, None))
    for number in range(3):
        lines.put(Request(str(number), "a", "x"))
        assert [item.request.id for item in next(batches)] == [str(number)]
    lines.put(None)
    assert list(batches) == []


def test_a_failure_of_the_source_reaches_the_caller_after_all_that_came_before_it():
    def requests():
        yield from (Request(str(number), "a", "x") for number in range(3))
        raise RuntimeError("the pipe burst")

    got = []
    with pytest.raises(RuntimeError, match="the pipe burst"):
        for batch in ReadAhead(lambda source: IMAGE, batch_size=2).batches(requests()):
            got += [item.request.id for item in batch]
    assert got == ["0", "1", "2"]


def test_reading_ahead_is_bounded_and_stops_with_the_model():
    num_read = 0

    def requests():
        nonlocal num_read
        while True:
            num_read += 1
            yield Request(str(num_read), "a", "x")

    batches = ReadAhead(lambda source: IMAGE, batch_size=2).batches(requests())
    next(batches)
    time.sleep(0.1)
    assert num_read < 20
    batches.close()
    deadline = time.monotonic() + 5
    while any(thread.name == "requests" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(thread.name == "requests" for thread in threading.enumerate())
