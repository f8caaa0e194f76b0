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

from refcli.errors import RefcliError, shorten
from refcli.geometry.frame import Frame
from refcli.inference.image_sources import ImageSource, source_key
from refcli.inference.requests import Request

MAX_THREADS = 8
MAX_REQUESTS_IN_BATCH = 64
"""A batch is emitted at this size even if most of its requests have no image."""
IMAGES_REMEMBERED = 8
"""A request about one of the last images does not decode it again."""
MAX_DRAWABLE_AHEAD = 4
"""Requests read ahead while images are kept for drawings: each image may take 50 MB."""
PATIENCE_SECONDS = 0.05
"""A partial batch is emitted when no request has arrived for this long, so that interactive users need not wait."""


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image in the model frame."""

    pixels: np.ndarray
    """float32 [3, height, width], normalised."""
    frame: Frame
    drawable: np.ndarray | None = None
    """uint8 RGB [height, width, 3] in the size of a drawing, if drawings are asked for."""


@dataclass(frozen=True)
class DecodedRequest:
    """A request with its image, or with the reason why it cannot be answered."""

    request: Request
    image: DecodedImage | None
    error: str | None = None


Decode: TypeAlias = Callable[[ImageSource], DecodedImage]


class ReadAhead:
    """One thread reads the requests, a few threads decode their images, the caller takes ordered batches.

    Args:
        decode: turns an image source into a model-ready image; its RefcliError becomes the request's error.
        batch_size: answerable requests in a batch.
        keeps_drawables: `decode` keeps images for drawings: fewer are read ahead, and those of malformed requests are
            decoded too.
    """

    def __init__(self, decode: Decode, *, batch_size: int, keeps_drawables: bool = False) -> None:
        self.decode = decode
        self.batch_size = batch_size
        self.keeps_drawables = keeps_drawables

    def batches(self, requests: Iterable[Request]) -> Iterator[list[DecodedRequest]]:
        """All requests, in order, in lists of at most `batch_size` answerable ones (and some with errors).

        Raises:
            BaseException: the failure of the source of requests, after everything that came before it.
        """
        feed = _Feed(requests, self.decode, depth=2 * self.batch_size, keeps_drawables=self.keeps_drawables)
        batch: list[DecodedRequest] = []
        num_answerable = 0
        try:
            while True:
                item = feed.take(wait=not batch)
                if isinstance(item, DecodedRequest):
                    batch.append(item)
                    num_answerable += item.error is None
                    is_full = num_answerable == self.batch_size or len(batch) == MAX_REQUESTS_IN_BATCH
                    if not is_full:
                        continue
                if batch:
                    yield batch
                    batch, num_answerable = [], 0
                if isinstance(item, _Failure):
                    raise item.error
                if item is None:
                    break
        finally:
            feed.close()


class _Pause:
    """The source of requests has nothing new at the moment."""


class _Failure:
    """The source of requests failed."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


_Slot: TypeAlias = "tuple[Request, Future[DecodedImage] | None] | _Failure | None"


class _Feed:
    """Reads requests in one thread and decodes their images in others."""

    def __init__(self, requests: Iterable[Request], decode: Decode, *, depth: int, keeps_drawables: bool) -> None:
        self._decode = decode
        self._keeps_drawables = keeps_drawables
        self._slots: queue.Queue[_Slot] = queue.Queue(min(depth, MAX_DRAWABLE_AHEAD) if keeps_drawables else depth)
        self._pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="decode")
        self._recent: OrderedDict[object, tuple[ImageSource, Future[DecodedImage]]] = OrderedDict()
        self._waiting_since: float | None = None
        self._closed = threading.Event()
        # A daemon: it may be blocked in a read from a terminal when the program wants to end.
        threading.Thread(target=self._read, args=(requests,), name="requests", daemon=True).start()

    def take(self, *, wait: bool) -> DecodedRequest | _Pause | _Failure | None:
        """The next request; None or a failure at the end; a pause if `wait` is False and the source is silent."""
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
        """Stop reading and cancel pending decoding."""
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
                is_decoded = request.error is None or self._keeps_drawables
                self._put((request, self._submit(request) if is_decoded else None))
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

    def _submit(self, request: Request) -> Future[DecodedImage]:
        source: ImageSource = request.image if request.source is None else request.source
        key = source_key(source)
        if key in self._recent:
            self._recent.move_to_end(key)
            return self._recent[key][1]
        future = self._pool.submit(self._decode, source)
        self._recent[key] = (source, future)  # the reference keeps the id of the source from being reused
        if len(self._recent) > IMAGES_REMEMBERED:
            self._recent.popitem(last=False)
        return future


def _finish(request: Request, future: Future[DecodedImage] | None) -> DecodedRequest:
    image, error = None, None
    try:
        image = None if future is None else future.result()
    except RefcliError as problem:
        error = problem.in_one_line()
    except Exception as problem:  # one image never ends a stream
        error = f"unexpected error: {shorten(f'{type(problem).__name__}: {problem}')}"
    return DecodedRequest(request, image, request.error or error)
