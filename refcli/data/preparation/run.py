"""Preparing one data set: records in, splits of the store out, by several processes, in the files' order."""

from __future__ import annotations

import gc
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa

from refcli.data.preparation.box_evidence import BoxEvidence
from refcli.data.preparation.dataset_images import Pictures
from refcli.data.preparation.finish import Finishing, PlacedRecord, finish
from refcli.data.shard import Shard
from refcli.data.sources.record import Problems, RawRecord
from refcli.data.store.layout import examples_to_table
from refcli.data.store.write import SplitSummary, SplitWriter, new_split
from refcli.errors import DataError

RECORDS_PER_TASK = 1_000
TASKS_AHEAD = 3
"""Tasks that wait for each worker, so that memory stays bounded however fast the reader is."""

Progress = Callable[[str, int], None]
"""Called with (data set, expressions read so far)."""


@dataclass
class Intake:
    """What the files of a split hold, before anything was left out."""

    records: int = 0
    expressions: int = 0
    images: set[int] = field(default_factory=set)

    def counts(self) -> dict[str, int]:
        """Counts as data specifications name them."""
        return {"images": len(self.images), "refs": self.records, "expressions": self.expressions}


@dataclass(frozen=True)
class Prepared:
    """Finished splits, not yet at their place."""

    summaries: tuple[SplitSummary, ...]
    writers: tuple[SplitWriter, ...]
    intake: Mapping[str, Intake]
    problems: Problems
    lost: Counter[str]
    """Expressions that were left out, by split."""
    evidence: Mapping[str, BoxEvidence] = field(default_factory=dict)
    """What boxes and masks show about each other, by split."""


class Selected:
    """The records wanted, counted as they pass."""

    def __init__(self, records: Iterable[RawRecord], splits: Collection[str] | None, shard: Shard | None) -> None:
        self._records, self._splits, self._shard = records, splits, shard
        self.intake: dict[str, Intake] = {}
        self.splits: set[str] = set()
        """Every split that went by, also those of which this shard holds nothing."""

    def __iter__(self) -> Iterator[RawRecord]:
        for record in self._records:
            if self._splits is not None and record.split not in self._splits:
                continue
            self.splits.add(record.split)
            if self._shard is not None and not self._shard.holds(record.image.key):
                continue
            intake = self.intake.setdefault(record.split, Intake())
            intake.records += 1
            intake.expressions += len(record.expressions)
            intake.images.add(hash(record.image.key))
            yield record


def run(
    selected: Selected,
    pictures: Pictures,
    *,
    stack: ExitStack,
    out: Path,
    how: Finishing,
    problems: Problems,
    workers: int = 1,
    shard: Shard | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Write the splits of one data set beside their places.

    Args:
        selected: the records to prepare.
        images: where their images are.
        stack: closes, and throws away what was not published.
        out: the store.
        how: the data set's name and what to check.
        problems: what the reader has found so far; more is added.
        workers: processes; the result does not depend on it.
        shard: which part this is, if the work is shared.
        progress: told as the work goes on.
    """
    writers: dict[str, SplitWriter] = {}
    done = 0
    lost: Counter[str] = Counter()
    evidence: defaultdict[str, BoxEvidence] = defaultdict(BoxEvidence)
    for chunk, (tables, found, shown) in _work(_placed(selected, pictures, problems, lost), how, workers):
        problems.merge(found)
        for split, one in shown.items():
            evidence[split].merge(one)
        for record in chunk:
            done += len(record.expressions)
            lost[record.split] += len(record.expressions)
        for split, table in tables.items():
            lost[split] -= len(table)
            if split not in writers:
                writers[split] = stack.enter_context(new_split(out, how.dataset, split, part=shard))
            writers[split].write(table)
        if progress:
            progress(how.dataset, done)
    if shard is not None:
        for split in sorted(selected.splits - writers.keys()):
            writers[split] = stack.enter_context(new_split(out, how.dataset, split, part=shard))
    for path, reason in pictures.unreadable.items():
        problems.add("unreadable_folder_or_archive", str(path), reason)
    summaries = tuple(writer.finish() for writer in writers.values())
    return Prepared(summaries, tuple(writers.values()), selected.intake, problems, +lost, dict(evidence))


@contextmanager
def paused_collector() -> Iterator[None]:
    """Leave Python's cycle collector out: millions of records, none in a cycle, cost it a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _placed(
    records: Iterable[RawRecord], pictures: Pictures, problems: Problems, lost: Counter[str]
) -> Iterator[PlacedRecord]:
    listed: set[str] = set()
    for record in records:
        place = pictures.place(record.image)
        if place is None:
            kind, detail = pictures.why_missing(record.image)
            problems.add(kind, record.where, detail)
            lost[record.split] += len(record.expressions)
            continue
        if place.is_by_name_only and record.image.key not in listed:
            listed.add(record.image.key)
            problems.add("image_found_by_name_only", record.where, f"{record.image.names[0]} is {place.path}")
        yield PlacedRecord(record, place.image, place.path)


_Done = tuple[dict[str, pa.Table], Problems, dict[str, BoxEvidence]]


def _work(placed: Iterator[PlacedRecord], how: Finishing, workers: int) -> Iterator[tuple[list[RawRecord], _Done]]:
    chunks = _chunks(placed)
    if workers == 1:
        for chunk in chunks:
            yield [one.record for one in chunk], finish_chunk(chunk, how)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
        waiting: deque[tuple[list[RawRecord], Future[_Done]]] = deque()
        try:
            for chunk in chunks:
                waiting.append(([one.record for one in chunk], pool.submit(finish_chunk, chunk, how)))
                if len(waiting) >= workers * TASKS_AHEAD:
                    records, future = waiting.popleft()
                    yield records, future.result()
            while waiting:
                records, future = waiting.popleft()
                yield records, future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process was killed", where=how.dataset, hint="was there enough memory? try fewer --workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def finish_chunk(chunk: list[PlacedRecord], how: Finishing) -> _Done:
    """The rows of some records by split, what was wrong with them, and what their boxes and masks show."""
    problems = Problems()
    evidence: defaultdict[str, BoxEvidence] = defaultdict(BoxEvidence)
    examples = list(finish(chunk, how, problems, evidence))
    splits = dict.fromkeys(example.split for example in examples)
    tables = {split: examples_to_table([one for one in examples if one.split == split]) for split in splits}
    return tables, problems, dict(evidence)


def _chunks(placed: Iterator[PlacedRecord]) -> Iterator[list[PlacedRecord]]:
    chunk: list[PlacedRecord] = []
    for one in placed:
        chunk.append(one)
        if len(chunk) == RECORDS_PER_TASK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
