"""Losses over vocabularies equal their definitions, written out as loops or by torch's own divergences."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from refcli.losses.mrefm import mim_loss, mlm_loss, sts_loss


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def loop_word_divergence(logits: torch.Tensor, token_ids: torch.Tensor, smoothing: float, dropped: float) -> float:
    """Sum of p log(p / q) word by word, the largest ones left out."""
    each = []
    for row, word in zip(logits.double().tolist(), token_ids.tolist(), strict=True):
        largest = max(row)
        log_sum = largest + math.log(sum(math.exp(value - largest) for value in row))
        truth = [1 - smoothing if other == word else smoothing / (len(row) - 1) for other in range(len(row))]
        terms = (p * (math.log(p) - (value - log_sum)) for p, value in zip(truth, row, strict=True) if p > 0)
        each.append(sum(terms))
    kept = sorted(each)[: max(int(len(each) * (1 - dropped)), 1)]
    return sum(kept) / len(kept)


@pytest.mark.parametrize("dropped", [0.0, 0.2, 0.5, 0.95])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_word_divergence_is_the_divergence_of_the_smoothed_truth_without_the_worst_words(smoothing, dropped):
    logits, token_ids = draw(11, 7), torch.arange(11) % 7
    loss = mlm_loss(logits, token_ids, label_smoothing=smoothing, drop_worst_ratio=dropped)
    assert loss.item() == pytest.approx(loop_word_divergence(logits, token_ids, smoothing, dropped), abs=1e-5)


def test_without_smoothing_and_dropping_it_is_cross_entropy_with_its_gradient():
    ours, theirs = draw(5, 9).requires_grad_(), draw(5, 9).requires_grad_()
    token_ids = torch.tensor([0, 8, 3, 3, 1])
    loss = mlm_loss(ours, token_ids, label_smoothing=0.0, drop_worst_ratio=0.0)
    loss.backward()
    truth = F.cross_entropy(theirs, token_ids)
    truth.backward()
    torch.testing.assert_close(loss, truth)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_prediction_equal_to_the_smoothed_truth_has_loss_zero():
    logits = torch.full((1, 5), math.log(0.1 / 4))
    logits[0, 2] = math.log(0.9)
    loss = mlm_loss(logits, torch.tensor([2]), label_smoothing=0.1, drop_worst_ratio=0.0)
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_a_dropped_word_has_no_gradient():
    logits, token_ids = torch.zeros(5, 4), torch.tensor([0, 1, 2, 3, 0])
    logits[3, 0] = 9.0  # sure of the wrong word
    logits.requires_grad_()
    mlm_loss(logits, token_ids, label_smoothing=0.1, drop_worst_ratio=0.2).backward()
    assert logits.grad.abs().sum(1).gt(0).tolist() == [True, True, True, False, True]


@pytest.mark.parametrize("dropped", [0.2, 0.99])
def test_a_single_word_is_kept_whatever_share_is_dropped(dropped):
    logits = draw(1, 6).requires_grad_()
    loss = mlm_loss(logits, torch.tensor([4]), label_smoothing=0.1, drop_worst_ratio=dropped)
    whole = mlm_loss(logits, torch.tensor([4]), label_smoothing=0.1, drop_worst_ratio=0.0)
    assert loss.item() == whole.item() > 0
    loss.backward()
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize("dropped", [0.0, 0.2])
def test_without_masked_words_or_patches_the_loss_is_zero_and_has_a_gradient(dropped):
    logits, none = torch.zeros(0, 6, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    words = mlm_loss(logits, none, label_smoothing=0.1, drop_worst_ratio=dropped)
    codes = mim_loss(logits, none)
    (words + codes).backward()
    assert words.item() == codes.item() == 0
    assert logits.grad.shape == (0, 6)


def test_code_cross_entropy_is_torchs():
    logits, code_ids = draw(8, 5), torch.arange(8) % 5
    torch.testing.assert_close(mim_loss(logits, code_ids), F.cross_entropy(logits, code_ids))


COUNTS = torch.tensor([[0, 1, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0]]).bool()


def scores() -> torch.Tensor:
    """A distribution over the words that count; one word has no share at all."""
    truth = draw(4, 6, seed=1).exp().masked_fill(~COUNTS, 0.0)
    truth[0, 2] = 0.0
    return truth / truth.sum(1, keepdim=True).clamp(min=1e-9)


def test_distribution_divergence_is_torchs_kl_div_over_the_words_that_count():
    logits, truth = draw(4, 6), scores()
    exists = torch.tensor([True, True, True, False])  # the third sample has no word that counts
    expected = [
        F.kl_div(logits[row, COUNTS[row]].log_softmax(-1), truth[row, COUNTS[row]], reduction="sum") for row in (0, 1)
    ]
    loss = sts_loss(logits, truth, COUNTS, exists)
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_distribution_divergence_has_the_gradient_of_softmax_and_none_outside():
    logits, truth = draw(4, 6).requires_grad_(), scores()
    exists = torch.tensor([True, True, True, True])
    sts_loss(logits, truth, COUNTS, exists).backward()
    softmax = logits.detach().masked_fill(~COUNTS, -torch.inf).softmax(-1).nan_to_num()
    torch.testing.assert_close(logits.grad, (softmax - truth) / 3)  # three samples have words that count
    assert logits.grad[~COUNTS].eq(0).all()


def test_the_sts_loss_is_zero_at_the_truth_and_without_referents():
    truth = scores()
    logits = truth.clamp(min=1e-30).log()
    everywhere = torch.ones(4, dtype=torch.bool)
    assert sts_loss(logits, truth, COUNTS, everywhere).item() == pytest.approx(0, abs=1e-6)
    assert sts_loss(draw(4, 6), truth, COUNTS, ~everywhere) == 0
