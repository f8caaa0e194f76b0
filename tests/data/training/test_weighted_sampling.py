"""A weighted sampler keeps the proportions of its sources, passes over each completely, and resumes anywhere."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import islice

import numpy as np
import pytest

from refcli.data.training.sampling import WeightedSampler
from refcli.errors import ConfigError, DataError

SIZES, WEIGHTS = (7, 50, 20), (3.0, 1.0, 2.0)


def first_batches(count, sizes=SIZES, weights=WEIGHTS, **settings):
    return list(islice(WeightedSampler(sizes, weights, **{"batch_size": 8, "seed": 5, **settings}), count))


def indices(batches):
    return [index for batch in batches for index, _ in batch]


def source_of(index, sizes=SIZES):
    return int(np.searchsorted(np.cumsum(sizes), index, side="right"))


def by_source(stream, sizes=SIZES):
    streams = defaultdict(list)
    for index in stream:
        streams[source_of(index, sizes)].append(index)
    return streams


def test_every_source_has_its_share_of_every_virtual_epoch():
    length = sum(SIZES)
    stream = indices(first_batches(10 * length, batch_size=1))
    for start in range(0, 10 * length, length):
        counts = Counter(source_of(index) for index in stream[start : start + length])
        for source, weight in enumerate(WEIGHTS):
            assert abs(counts[source] - length * weight / sum(WEIGHTS)) < 1


def test_every_pass_over_a_source_has_each_of_its_samples_once():
    stream = by_source(indices(first_batches(200)))
    for source, size in enumerate(SIZES):
        first = sum(SIZES[:source])
        whole_passes = len(stream[source]) // size
        assert whole_passes >= 5
        for start in range(0, whole_passes * size, size):
            assert sorted(stream[source][start : start + size]) == list(range(first, first + size))


def test_passes_differ_and_sources_take_turns_in_no_fixed_order():
    stream = indices(first_batches(200))
    small = by_source(stream)[0]
    turns = [source_of(index) for index in stream]

    assert len({tuple(small[start : start + 7]) for start in range(0, 140, 7)}) > 15
    assert turns[:77] != turns[77:154]
    assert turns != [source_of(index) for index in indices(first_batches(200, seed=6))]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("step", [0, 1, 9, 10, 31, 77])
def test_resuming_at_a_step_continues_the_uninterrupted_stream(world, step):
    settings = {"rank": world - 1, "world": world}

    assert first_batches(90 - step, start_step=step, **settings) == first_batches(90, **settings)[step:]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_divide_each_global_batch_of_the_single_process(world):
    single = first_batches(40, batch_size=4 * world)
    ranks = [first_batches(40, batch_size=4, rank=rank, world=world) for rank in range(world)]
    for step, batch in enumerate(single):
        assert Counter(item for rank in ranks for item in rank[step]) == Counter(batch)


def test_batches_do_not_depend_on_the_order_of_access():
    sampler = WeightedSampler(SIZES, WEIGHTS, batch_size=8, seed=5)
    whole = first_batches(60)
    for step in np.random.default_rng(0).permutation(60).tolist():
        assert sampler.batch(step) == whole[step]


def test_a_batch_may_hold_many_passes_over_a_small_source():
    stream = indices(first_batches(4, sizes=(2, 30), weights=(1.0, 1.0), batch_size=64))
    small = [index for index in stream if index < 2]

    assert len(small) == 128
    for start in range(0, len(small), 2):
        assert sorted(small[start : start + 2]) == [0, 1]


def test_a_rare_source_occurs_in_every_virtual_epoch_of_a_small_store():
    sampler = WeightedSampler((2, 2), (999.0, 1.0), batch_size=1000, seed=1)

    assert sampler.epoch_length == 1000
    assert [sum(index >= 2 for index, _ in sampler.batch(step)) for step in range(5)] == [1] * 5


def test_a_draw_depends_on_seed_pass_and_index_only():
    def draws(**settings):
        seen = defaultdict(list)
        for batch in first_batches(900 // settings["batch_size"], **settings):
            for index, draw in batch:
                seen[index].append(draw)
        return {index: values[:2] for index, values in seen.items()}

    assert draws(batch_size=4) == draws(batch_size=10)
    assert draws(batch_size=4) == draws(batch_size=4, weights=(1.0, 1.0, 1.0))
    assert len({draw for values in draws(batch_size=4).values() for draw in values}) == 2 * sum(SIZES)
    assert not set(draws(batch_size=4, seed=6)[0]) & set(draws(batch_size=4)[0])


def test_batches_are_plain_integers():
    ((index, draw), *_) = first_batches(1)[0]

    assert (type(index), type(draw)) == (int, int)


def test_an_empty_source_is_an_error():
    with pytest.raises(DataError, match="no samples"):
        WeightedSampler((4, 0), (1.0, 1.0), batch_size=4, seed=0)


def test_a_share_that_is_never_drawn_is_an_error():
    with pytest.raises(ConfigError, match="once in a million") as caught:
        WeightedSampler((4, 4), (1.0, 1e-7), batch_size=4, seed=0)
    assert caught.value.where == "data.weights"
