"""Decoding images ahead of the model: requests in, ordered batches of model-ready images out."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from refcli.errors import RefcliError
from refcli.geometry.frame import Frame
from refcli.inference.requests import ImageSource, Request, identity

MAX_THREADS = 8
MOST_WITH_ERRORS = 64
"""A batch goes out at the latest when it has so many requests, should most of them have no image."""
IMAGES_REMEMBERED = 8
"""Requests about one of the last so many images do not decode it again."""
LONGEST_SHOWN = 400
"""Characters of an error, and of a name in it."""
PATIENCE_SECONDS = 0.05
"""A part-filled batch goes out when no new request has come for this long, so that a dialogue is answered at once."""


@dataclass(frozen=True)
class Picture:
    """A decoded image in the model frame."""

    pixels: np.ndarray
    """float32 [3, height, width], normalised."""
    frame: Frame


@dataclass(frozen=True)
class Prepared:
    """A request with its image, or with the reason why there is none."""

    request: Request
    picture: Picture | None
    error: str | None = None


Prepare: TypeAlias = Callable[[ImageSource], Picture]


class ReadAhead:
    """One thread reads the requests, a few decode their images, the caller takes ordered batches.

    Args:
        prepare: turns an image source into a model-ready image; a RefcliError of its becomes the request's error.
        batch_size: answerable requests in a batch.
    """

    def __init__(self, prepare: Prepare, *, batch_size: int) -> None:
        self.prepare = prepare
        self.batch_size = batch_size

    def batches(self, requests: Iterable[Request]) -> Iterator[list[Prepared]]:
        """All requests, in order, in lists of at most `batch_size` with an image (and some with errors).

        Raises:
            BaseException: what broke the source of requests, after all that came before it.
        """
        feed = _Feed(requests, self.prepare, depth=2 * self.batch_size)
        batch: list[Prepared] = []
        num_answerable = 0
        try:
            while True:
                prepared = feed.take(wait=not batch)
                if isinstance(prepared, Prepared):
                    batch.append(prepared)
                    num_answerable += prepared.picture is not None
                is_last = prepared is None or isinstance(prepared, _Failure)
                if batch and (
                    is_last
                    or isinstance(prepared, _Pause)
                    or num_answerable == self.batch_size
                    or len(batch) == MOST_WITH_ERRORS
                ):
                    yield batch
                    batch, num_answerable = [], 0
                if isinstance(prepared, _Failure):
                    raise prepared.error
                if is_last:
                    break
        finally:
            feed.close()


class _Pause:
    """The source of requests is silent for the moment."""


class _Failure:
    """The source of requests broke."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


_Slot: TypeAlias = "tuple[Request, Future[Picture] | None] | _Failure | None"


class _Feed:
    def __init__(self, requests: Iterable[Request], prepare: Prepare, *, depth: int) -> None:
        self._prepare = prepare
        self._slots: queue.Queue[_Slot] = queue.Queue(maxsize=depth)
        self._pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="decode")
        self._recent: OrderedDict[object, tuple[ImageSource, Future[Picture]]] = OrderedDict()
        self._waiting_since: float | None = None
        self._closed = threading.Event()
        # A daemon: it may be blocked in a read from a terminal when the program wants to end.
        threading.Thread(target=self._read, args=(requests,), name="requests", daemon=True).start()

    def take(self, *, wait: bool) -> Prepared | _Pause | _Failure | None:
        """The next request; None or a failure at the end; a pause where `wait` is False and the source is silent."""
        while True:
            try:
                slot = self._slots.get(timeout=None if wait else PATIENCE_SECONDS)
            except queue.Empty:
                since = self._waiting_since
                if since is not None and time.monotonic() - since >= PATIENCE_SECONDS and self._slots.empty():
                    return _Pause()
                continue
            return slot if slot is None or isinstance(slot, _Failure) else _finish(*slot)

    def close(self) -> None:
        """Stop reading and drop what is not decoded yet."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, requests: Iterable[Request]) -> None:
        last: _Slot = None
        try:
            iterator = iter(requests)
            while not self._closed.is_set():
                self._waiting_since = time.monotonic()
                request = next(iterator, None)
                self._waiting_since = None
                if request is None:
                    break
                self._put((request, None if request.error is not None else self._decode(request)))
        except BaseException as error:
            self._waiting_since = None
            last = _Failure(error)
        self._put(last)

    def _put(self, slot: _Slot) -> None:
        while not self._closed.is_set():
            try:
                self._slots.put(slot, timeout=0.1)
                return
            except queue.Full:
                continue

    def _decode(self, request: Request) -> Future[Picture]:
        source: ImageSource = request.image if request.source is None else request.source
        key = identity(source)
        if key in self._recent:
            self._recent.move_to_end(key)
            return self._recent[key][1]
        future = self._pool.submit(self._prepare, source)
        self._recent[key] = (source, future)  # holding the source keeps its id from being given to another
        if len(self._recent) > IMAGES_REMEMBERED:
            self._recent.popitem(last=False)
        return future


def _finish(request: Request, future: Future[Picture] | None) -> Prepared:
    if future is None:
        return Prepared(request, None, request.error)
    try:
        return Prepared(request, future.result())
    except RefcliError as error:
        return Prepared(request, None, one_line(error))
    except Exception as error:  # one image never ends a stream
        return Prepared(request, None, f"unexpected error: {shorten(f'{type(error).__name__}: {error}')}")


def one_line(error: RefcliError) -> str:
    """An error as the `error` field of an answer."""
    return f"{shorten(error.message)} ({shorten(error.where)})" if error.where else shorten(error.message)


def shorten(text: str) -> str:
    """A text of which the middle is left out where it is longer than `LONGEST_SHOWN`: a name may be anything."""
    half = LONGEST_SHOWN // 2
    return text if len(text) <= LONGEST_SHOWN else f"{text[:half]} ... {text[-half:]}"
