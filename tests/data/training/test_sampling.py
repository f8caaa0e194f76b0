"""Batches are permutations, resumable from a step number, and divided among ranks."""

from collections import Counter
from itertools import islice

import pytest

from refcli.data.training.sampling import EndlessSampler, OnePass
from refcli.errors import DataError


def first_batches(count, num_samples, **settings):
    return list(islice(EndlessSampler(num_samples, **settings), count))


def indices(batches):
    return [index for batch in batches for index, _ in batch]


def test_every_epoch_holds_every_sample_once_although_batches_straddle_epochs():
    stream = indices(first_batches(30, 10, batch_size=4, seed=1))
    assert len(stream) == 120
    for start in range(0, 120, 10):
        assert sorted(stream[start : start + 10]) == list(range(10))


def test_every_batch_is_full_even_when_it_is_longer_than_an_epoch():
    batches = first_batches(6, 3, batch_size=8, seed=1)
    assert {len(batch) for batch in batches} == {8}
    stream = indices(batches)
    for start in range(0, 48, 3):
        assert sorted(stream[start : start + 3]) == [0, 1, 2]


def test_epochs_differ_from_each_other_and_seeds_too():
    stream = indices(first_batches(2, 100, batch_size=100, seed=1))
    assert stream[:100] != stream[100:]
    assert stream[:100] != list(range(100))
    assert stream != indices(first_batches(2, 100, batch_size=100, seed=2))


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("step", [0, 1, 7, 24, 25, 26, 60])
def test_resuming_at_a_step_continues_the_uninterrupted_stream(world, step):
    settings = {"batch_size": 4, "seed": 5, "rank": world - 1, "world": world}
    whole = first_batches(70, 103, **settings)
    assert first_batches(70 - step, 103, start_step=step, **settings) == whole[step:]


@pytest.mark.parametrize("world", [2, 3, 8])
def test_ranks_divide_each_global_batch_of_the_single_process(world):
    single = first_batches(12, 50, batch_size=4 * world, seed=3)
    ranks = [first_batches(12, 50, batch_size=4, seed=3, rank=rank, world=world) for rank in range(world)]
    for step, batch in enumerate(single):
        shared = [item for rank in ranks for item in rank[step]]
        assert Counter(shared) == Counter(batch)


def test_a_draw_depends_on_seed_epoch_and_index_only():
    def draws(batch_size, seed):
        stream = [
            item for batch in first_batches(40 // batch_size, 20, batch_size=batch_size, seed=seed) for item in batch
        ]
        return dict(stream[:20]), dict(stream[20:])

    first, second = draws(4, seed=1)
    assert (first, second) == draws(10, seed=1)
    assert len(set(first.values()) | set(second.values())) == 40
    assert not set(first.values()) & set(draws(4, seed=2)[0].values())
    assert all(0 <= draw < 2**63 for draw in first.values())


def test_neighbouring_seeds_do_not_share_draws():
    # A sum of seed and epoch would give seed 2 in epoch 0 the draws of seed 1 in epoch 1.
    seen = Counter()
    for seed in range(10):
        seen.update(draw for batch in first_batches(50, 10, batch_size=2, seed=seed) for _, draw in batch)
    assert max(seen.values()) == 1


def test_batches_are_plain_integers():
    ((index, draw),) = first_batches(1, 5, batch_size=1, seed=0)[0]
    assert type(index) is int
    assert type(draw) is int


def test_an_empty_data_set_is_an_error():
    with pytest.raises(DataError, match="no samples"):
        EndlessSampler(0, batch_size=4, seed=0)


@pytest.mark.parametrize("world", [1, 2, 5])
@pytest.mark.parametrize("num_samples", [0, 1, 7, 16])
def test_one_pass_sees_every_sample_once_over_all_ranks(world, num_samples):
    passes = [OnePass(num_samples, batch_size=3, rank=rank, world=world) for rank in range(world)]
    batches = [list(one) for one in passes]
    assert sorted(index for rank in batches for index in indices(rank)) == list(range(num_samples))
    assert [len(one) for one in passes] == [len(rank) for rank in batches]
    assert all(1 <= len(batch) <= 3 for rank in batches for batch in rank)


def test_one_pass_of_one_process_is_in_order():
    assert list(OnePass(5, 2)) == [[(0, 0), (1, 0)], [(2, 0), (3, 0)], [(4, 0)]]
