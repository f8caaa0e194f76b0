"""Random numbers follow from seed, step, sample and stream alone."""

from hashlib import blake2b

import pytest
import torch

from refcli.pretraining.draws import SampleDraws, sample_keys

KEYS = sample_keys(["one", "two", "three"])
WORD = 2**64


def splitmix64(state: int) -> int:
    """One output of SplitMix64 after its state was advanced, in unsigned Python numbers."""
    z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % WORD
    return z ^ (z >> 31)


def sequence(seed: int, num: int) -> list[int]:
    return [splitmix64((seed + (n + 1) * 0x9E3779B97F4A7C15) % WORD) for n in range(num)]


def test_the_reference_below_is_splitmix64():
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert sequence(1234567, 4) == published


def test_the_integers_are_splitmix64_started_at_a_hash_of_seed_step_stream_and_key():
    state = 0
    for word in (13, 70_000, 2):
        state = sequence((state + word) % WORD, 1)[0]
    expected = [[number >> 1 for number in sequence(splitmix64((key + state) % WORD), 5)] for key in KEYS.tolist()]
    assert SampleDraws(13, 70_000, KEYS).integers(5, stream=2).tolist() == expected


def test_uniforms_are_the_leading_bits_of_the_integers():
    integers = SampleDraws(1, 2, KEYS).integers(100, stream=3)
    assert SampleDraws(1, 2, KEYS).uniforms(100, stream=3).tolist() == [
        [(number >> 39) / 2**24 for number in row] for row in integers.tolist()
    ]


def test_uniforms_are_uniform_and_uncorrelated():
    draws = SampleDraws(0, 0, sample_keys([str(n) for n in range(1000)])).uniforms(1000, stream=0)
    assert draws.dtype == torch.float32
    assert 0 <= draws.min() < 1e-5 and 1 - 1e-5 < draws.max() < 1
    counts = torch.histc(draws, bins=100, min=0, max=1)
    assert ((counts - 10_000).abs() < 5 * 100).all()  # 5 standard deviations of a bin
    for other in (draws.roll(1, 0), draws.roll(1, 1)):
        assert abs(torch.corrcoef(torch.stack([draws.flatten(), other.flatten()]))[0, 1]) < 0.005


def test_neither_the_rest_of_the_batch_nor_the_length_changes_a_number():
    all_three = SampleDraws(5, 6, KEYS).uniforms(50, stream=7)
    assert torch.equal(SampleDraws(5, 6, KEYS[[2, 0]]).uniforms(20, stream=7), all_three[[2, 0], :20])


@pytest.mark.parametrize("other", [(6, 6, 7), (5, 7, 7), (5, 6, 8), (6, 5, 7), (5, 7, 6)])
def test_seed_step_and_stream_each_change_all_numbers(other):
    seed, step, stream = other
    here, there = (
        SampleDraws(5, 6, KEYS).uniforms(50, stream=7),
        SampleDraws(seed, step, KEYS).uniforms(50, stream=stream),
    )
    assert not (here == there).any()


def test_keys_are_stable_hashes_of_the_ids():
    ids = ["refcoco/1", "refcoco/2", "Zürich"]
    digests = [blake2b(name.encode("utf-8"), digest_size=8).digest() for name in ids]
    assert sample_keys(ids).tolist() == [int.from_bytes(digest, "little") // 2 for digest in digests]
    assert sample_keys(ids[::-1]).tolist() == sample_keys(ids).tolist()[::-1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same_numbers():
    here = SampleDraws(5, 6, KEYS).integers(500, stream=7)
    assert torch.equal(SampleDraws(5, 6, KEYS.cuda()).integers(500, stream=7).cpu(), here)
