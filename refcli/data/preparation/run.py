"""Prepare the records of one data set in several processes, and write its splits as unpublished files in file order."""

from __future__ import annotations

import gc
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from refcli.data.distinct import DistinctCounter
from refcli.data.preparation.box_evidence import BoxEvidence
from refcli.data.preparation.dataset_images import DatasetImages
from refcli.data.preparation.finish import FinishSettings, PlacedRecord, finish
from refcli.data.shard import Shard
from refcli.data.sources.record import Problems, RawRecord
from refcli.data.store.layout import examples_to_table
from refcli.data.store.write import SplitSummary, SplitWriter, new_split
from refcli.errors import DataError

RECORDS_PER_TASK = 1_000
TASKS_AHEAD = 3
"""Maximum number of waiting tasks per worker, which bounds the memory even if the reader is fast."""

Progress = Callable[[str, int, int | None], None]
"""Called with (data set or split, expressions or images done, the total if it is known)."""


@dataclass
class Intake:
    """The contents of the files of a split, before any record is left out."""

    records: int = 0
    expressions: int = 0
    images: DistinctCounter = field(default_factory=DistinctCounter)

    def counts(self) -> dict[str, int]:
        """Counts under the names of data specifications."""
        return {"images": len(self.images), "refs": self.records, "expressions": self.expressions}


@dataclass(frozen=True)
class UnpublishedSplits:
    """Finished files of splits that the store does not list yet."""

    summaries: tuple[SplitSummary, ...]
    writers: tuple[SplitWriter, ...]
    intake: Mapping[str, Intake]
    problems: Problems
    lost: Counter[str]
    """Omitted expressions, by split."""
    evidence: Mapping[str, BoxEvidence] = field(default_factory=dict)
    """Agreement of boxes and masks, by split."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Number of the expressions that refcli has written, by kind."""


class SelectedRecords:
    """The records of the wanted splits and of one shard, counted on iteration."""

    def __init__(self, records: Iterable[RawRecord], splits: Collection[str] | None, shard: Shard | None) -> None:
        self._records, self._splits = records, splits
        self.shard = shard
        self.intake: dict[str, Intake] = {}
        self.splits: set[str] = set()
        """All wanted splits of the files, including those without a record in this shard."""

    def __iter__(self) -> Iterator[RawRecord]:
        for record in self._records:
            if self._splits is not None and record.split not in self._splits:
                continue
            self.splits.add(record.split)
            if self.shard is not None and not self.shard.holds(record.image.key):
                continue
            intake = self.intake.setdefault(record.split, Intake())
            intake.records += 1
            intake.expressions += len(record.expressions)
            intake.images.update((record.image.key,))
            yield record


def write_splits(
    selected: SelectedRecords,
    images: DatasetImages,
    settings: FinishSettings,
    *,
    out: Path,
    stack: ExitStack,
    problems: Problems,
    workers: int = 1,
    progress: Progress | None = None,
) -> UnpublishedSplits:
    """Write the splits of one data set under temporary names.

    Args:
        selected: the records to prepare.
        images: the images of the data set.
        settings: the name of the data set, and the checks.
        out: the store.
        stack: on exit, removes the files that were not published.
        problems: the reader's problems; those of later steps are added.
        workers: number of processes; the result does not depend on it.
        progress: called as the work proceeds.
    """
    writers: dict[str, SplitWriter] = {}
    done = 0
    lost: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    evidence: defaultdict[str, BoxEvidence] = defaultdict(BoxEvidence)
    for chunk, finished in _finish_all(_place(selected, images, problems, lost), settings, workers):
        problems.merge(finished.problems)
        kinds.update(finished.kinds)
        for split, found in finished.evidence.items():
            evidence[split].merge(found)
        for record, _ in chunk:
            done += len(record.expressions) or int(record.needs_expressions)
            lost[record.split] += len(record.expressions)
        for split, table in finished.tables.items():
            lost[split] -= len(table)
            if split not in writers:
                writers[split] = stack.enter_context(new_split(out, settings.dataset, split, part=selected.shard))
            writers[split].write(table)
        if progress:
            progress(settings.dataset, done, None)
    if selected.shard is not None:
        for split in sorted(selected.splits - writers.keys()):
            writers[split] = stack.enter_context(new_split(out, settings.dataset, split, part=selected.shard))
    for path, reason in images.unreadable.items():
        problems.add("unreadable_folder_or_archive", str(path), reason)
    summaries = tuple(writer.finish() for writer in writers.values())
    return UnpublishedSplits(
        summaries, tuple(writers.values()), selected.intake, problems, +lost, dict(evidence), kinds
    )


@contextmanager
def paused_collector() -> Iterator[None]:
    """Pause Python's cycle collector, which takes a third of the time for millions of records and finds no cycle."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _place(
    records: Iterable[RawRecord], images: DatasetImages, problems: Problems, lost: Counter[str]
) -> Iterator[PlacedRecord]:
    """The records whose images are found; the others are reported."""
    reported: set[str] = set()
    for record in records:
        place = images.place(record.image)
        if place is None:
            kind, detail = images.why_missing(record.image)
            problems.add(kind, record.where, detail)
            lost[record.split] += len(record.expressions)
            continue
        if place.is_by_name_only and record.image.key not in reported:
            reported.add(record.image.key)
            problems.add("image_found_by_name_only", record.where, f"{record.image.names[0]} is {place.path}")
        yield record, place


class FinishedChunk(NamedTuple):
    """The result of `finish_chunk`, by split where it is a mapping."""

    tables: dict[str, pa.Table]
    problems: Problems
    evidence: dict[str, BoxEvidence]
    kinds: Counter[str]
    """Number of the expressions that refcli has written, by kind."""


def finish_chunk(chunk: list[PlacedRecord], settings: FinishSettings) -> FinishedChunk:
    """Finish some records: their rows, their problems, and the agreement of their boxes and masks."""
    problems = Problems()
    evidence: defaultdict[str, BoxEvidence] = defaultdict(BoxEvidence)
    examples = list(finish(chunk, settings, problems, evidence))
    splits = dict.fromkeys(example.split for example in examples)
    tables = {split: examples_to_table([one for one in examples if one.split == split]) for split in splits}
    kinds = Counter(example.kind or "" for example in examples if settings.survey is not None)
    return FinishedChunk(tables, problems, dict(evidence), kinds)


def _finish_all(
    placed: Iterator[PlacedRecord], settings: FinishSettings, workers: int
) -> Iterator[tuple[list[PlacedRecord], FinishedChunk]]:
    """The chunks of the records with their results, in order."""
    chunks = iter(lambda: list(islice(placed, RECORDS_PER_TASK)), [])
    if workers == 1:
        for chunk in chunks:
            yield chunk, finish_chunk(chunk, settings)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
        waiting: deque[tuple[list[PlacedRecord], Future[FinishedChunk]]] = deque()
        try:
            for chunk in chunks:
                waiting.append((chunk, pool.submit(finish_chunk, chunk, settings)))
                if len(waiting) >= workers * TASKS_AHEAD:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process was killed",
                where=settings.dataset,
                hint="it may have run out of memory; use fewer --workers",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
