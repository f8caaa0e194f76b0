"""Words are masked as the official code does, subject and object first, sample by sample the same."""

import json
import runpy
from pathlib import Path

import pytest
import torch

from refcli.config.pretraining import TextMaskingSettings
from refcli.pretraining.draws import SampleDraws, sample_keys
from refcli.pretraining.text_masking import FATE_STREAM, ORDER_STREAM, REPLACEMENT_STREAM, mask_words

ROOT = Path(__file__).resolve().parents[2]
MASK_ID, VOCABULARY = 64001, (4, 64001)


def keys(num: int) -> torch.Tensor:
    return sample_keys([f"sample {n}" for n in range(num)])


def expressions(num: int, lengths: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """<s>, pieces 100, 101, ..., </s> of the given lengths, padded with 1."""
    place = torch.arange(width)
    ids = (99 + place).repeat(num, 1)
    ids[:, 0] = 0
    ids[place == lengths[:, None] - 1] = 2
    is_pad = place >= lengths[:, None]
    return ids.masked_fill(is_pad, 1), is_pad


def mask(ids, is_pad, roles, *, settings=TextMaskingSettings(), keys, seed=0, step=0):  # noqa: B008 - frozen
    return mask_words(
        ids, is_pad, roles, settings, mask_id=MASK_ID, vocabulary=VOCABULARY, draws=SampleDraws(seed, step, keys)
    )


def test_counts_preference_and_shares_are_the_official_ones(fixtures):
    cases = json.loads((fixtures / "masking" / "text_mask_stats.json").read_text())
    num = 8000
    for case in cases:
        length = case["num_tokens"]
        ids, is_pad = expressions(num, torch.full((num,), length), length)
        roles = torch.zeros_like(ids)
        preferred = (case["subject_word_index"], case["object_word_index"])
        for role, index in enumerate(preferred, start=1):
            if index is not None:
                roles[:, index + 1] = role
        masked = mask(ids, is_pad, roles, settings=TextMaskingSettings(ratio=case["mask_prob"]), keys=keys(num))

        assert masked.is_masked.sum(1).unique().tolist() == case["number_masked"]
        frequency = masked.is_masked.double().mean(0)
        for place, official in enumerate(case["position_frequency"]):
            if official in (0.0, 1.0):
                assert frequency[place] == official
            else:
                error = (official * (1 - official) / case["draws"]) ** 0.5
                assert frequency[place] == pytest.approx(official, abs=4 * error)
        shown, true = masked.token_ids[masked.is_masked], ids[masked.is_masked]
        shares = [(shown == MASK_ID), (shown == true), (shown != MASK_ID) & (shown != true)]
        num_official = case["draws"] * case["number_masked"][0]
        for share, official in zip(shares, case["share_mask_kept_random"], strict=True):
            error = (official * (1 - official) / num_official) ** 0.5
            assert share.double().mean().item() == pytest.approx(official, abs=4 * error)
        assert torch.equal(masked.token_ids[~masked.is_masked], ids[~masked.is_masked])


def test_masks_equal_those_of_a_plain_loop():
    loop_words = runpy.run_path(str(ROOT / "benchmarks" / "masking.py"))["loop_words"]
    num, width = 50, 12
    lengths = 3 + torch.arange(num) % 10
    ids, is_pad = expressions(num, lengths, width)
    roles = torch.zeros_like(ids)
    roles[:, 1], roles[::2, 3:5] = 1, 2
    settings = TextMaskingSettings(ratio=0.5, mask_share=0.3, random_share=0.5)
    masked = mask(ids, is_pad, roles, settings=settings, keys=keys(num), seed=4, step=9)
    draws = [
        SampleDraws(4, 9, keys(num)).uniforms(width, stream=stream).tolist()
        for stream in (ORDER_STREAM, FATE_STREAM, REPLACEMENT_STREAM)
    ]
    samples = zip(ids.tolist(), is_pad.tolist(), roles.tolist(), *draws, strict=True)
    expected = [
        loop_words(row, pad, role, settings, order, fate, other) for row, pad, role, order, fate, other in samples
    ]
    assert masked.token_ids.tolist() == [shown for shown, _ in expected]
    assert masked.is_masked.tolist() == [where for _, where in expected]


def test_all_pieces_of_the_subject_come_before_the_object_and_the_rest():
    ids, is_pad = expressions(500, torch.full((500,), 10), 10)
    roles = torch.tensor([0, 0, 0, 0, 1, 1, 1, 0, 2, 0]).repeat(500, 1)
    three = mask(ids, is_pad, roles, settings=TextMaskingSettings(ratio=0.33), keys=keys(500))
    assert three.is_masked.tolist() == (roles == 1).tolist()
    four = mask(ids, is_pad, roles, settings=TextMaskingSettings(ratio=0.44), keys=keys(500))
    assert four.is_masked.tolist() == (roles > 0).tolist()
    two = mask(ids, is_pad, roles, settings=TextMaskingSettings(ratio=0.22), keys=keys(500))
    assert not two.is_masked[roles != 1].any()
    assert (two.is_masked[roles == 1].view(500, 3).double().mean(0) - 2 / 3).abs().max() < 0.1


@pytest.mark.parametrize("ratio", [0.0, 0.4, 1.0])
def test_the_first_token_and_padding_are_never_masked(ratio):
    lengths = 3 + torch.arange(40) % 8
    ids, is_pad = expressions(40, lengths, 12)
    roles = torch.ones_like(ids)
    masked = mask(ids, is_pad, roles, settings=TextMaskingSettings(ratio=ratio), keys=keys(40))
    assert not masked.is_masked[:, 0].any()
    assert not masked.is_masked[is_pad].any()
    wanted = [max(1, min(int((n - 1) * ratio + 0.5), n - 1)) for n in lengths.tolist()]
    assert masked.is_masked.sum(1).tolist() == wanted


def test_without_preference_roles_do_not_matter():
    ids, is_pad = expressions(30, torch.full((30,), 8), 8)
    roles = torch.tensor([0, 1, 2, 0, 0, 0, 0, 0]).repeat(30, 1)
    plain = mask(ids, is_pad, None, keys=keys(30))
    unasked = mask(ids, is_pad, roles, settings=TextMaskingSettings(prefer="none"), keys=keys(30))
    assert torch.equal(plain.token_ids, unasked.token_ids)
    assert not torch.equal(plain.is_masked, mask(ids, is_pad, roles, keys=keys(30)).is_masked)


def test_a_sample_is_masked_alone_as_in_a_batch_with_longer_expressions():
    lengths = torch.tensor([5, 9, 16, 3])
    ids, is_pad = expressions(4, lengths, 16)
    together = mask(ids, is_pad, None, keys=keys(4), seed=1, step=7)
    for chosen, length in enumerate(lengths.tolist()):
        row = slice(chosen, chosen + 1)
        alone = mask(ids[row, :length], is_pad[row, :length], None, keys=keys(4)[row], seed=1, step=7)
        assert torch.equal(alone.token_ids[0], together.token_ids[chosen, :length])
        assert torch.equal(alone.is_masked[0], together.is_masked[chosen, :length])
    later = mask(ids, is_pad, None, keys=keys(4), seed=1, step=8)
    assert not torch.equal(later.token_ids, together.token_ids)


def test_random_words_come_from_the_whole_vocabulary_and_nowhere_else():
    ids, is_pad = expressions(4000, torch.full((4000,), 8), 8)
    settings = TextMaskingSettings(ratio=1.0, mask_share=0.0, random_share=1.0)
    masked = mask_words(
        ids, is_pad, None, settings, mask_id=99, vocabulary=(10, 20), draws=SampleDraws(0, 0, keys(4000))
    )
    shares = torch.bincount(masked.token_ids[masked.is_masked], minlength=20) / (4000 * 7)
    assert shares[:10].sum() == 0 and len(shares) == 20
    assert (shares[10:] - 0.1).abs().max() < 0.01


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_masks_the_same_words():
    ids, is_pad = expressions(30, 3 + torch.arange(30) % 6, 8)
    here = mask(ids, is_pad, None, keys=keys(30))
    there = mask(ids.cuda(), is_pad.cuda(), None, keys=keys(30).cuda())
    assert torch.equal(there.token_ids.cpu(), here.token_ids)
