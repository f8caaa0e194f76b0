"""The estimate of memory agrees with the memory of a real step and with the state of real optimisers."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from refcli.config.schema import HeadChoice, ModelSettings, OptimSettings, TextSettings, TowerSettings, TrainSettings
from refcli.contracts.batch import Batch, Targets
from refcli.engine.measuring.memory import estimate_memory, first_samples
from refcli.engine.optimisation.optimizer import build_optimizer
from refcli.grounder import Grounder

CPU = torch.device("cpu")
ADAMW = OptimSettings(lr=1e-4)
PLAIN = TrainSettings(precision="fp32")


def make_grounder(**tower) -> Grounder:
    sizes = {"image_size": 64, "patch_size": 8, "dim": 64, "layers": 4, "heads": 2, "ffn_dim": 256}
    small = TowerSettings(**{**sizes, "vocabulary_size": 50, "max_text_positions": 20, "init": "scaled", **tower})
    head = HeadChoice(settings={"res": True, "mask_dim": 16, "mask_upsamples": 2})
    torch.manual_seed(0)
    return Grounder.from_settings(ModelSettings(tower=small, text=TextSettings(max_tokens=18), head=head)).train()


def make_batch(pairs: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(pairs, 64, 64, generator=generator) < 0.3
    yes = torch.ones(pairs, dtype=torch.bool)
    ids = torch.randint(4, 50, (pairs, 8), generator=generator)
    return Batch(
        images=torch.randn(pairs, 3, 64, 64, generator=generator),
        token_ids=ids,
        token_is_pad=torch.zeros(pairs, 8, dtype=torch.bool),
        targets=Targets(torch.rand(pairs, 4, generator=generator) / 2 + 0.25, masks, yes, yes),
        ids=tuple(map(str, range(pairs))),
        word_roles=torch.zeros_like(ids),
    )


def size(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def state_of(optimizer) -> int:
    """Bytes of optimiser state, without step counters."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    return size(value for value in values if isinstance(value, torch.Tensor) and value.numel() > 1)


def measured_peak(grounder: Grounder, batch: Batch, precision: str) -> int:
    """Largest number of bytes that are allocated at once in the second step, by torch's profiler."""
    optimizer = build_optimizer(grounder, ADAMW)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            losses = grounder(batch, 0)
        torch.autograd.backward(sum(loss.float() for loss in losses.values()))
        optimizer.step()

    step()
    optimizer.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = torch.tensor([event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())]).cumsum(0)
    return size([*grounder.parameters(), *grounder.buffers()]) + state_of(optimizer) + int(live.max())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_estimate_is_within_15_percent_of_a_real_step(precision, checkpointed):
    grounder, batch = make_grounder(checkpoint_activations=checkpointed), make_batch()
    settings = TrainSettings(precision=precision)

    estimate = estimate_memory(grounder, batch, optim=ADAMW, settings=settings, device=CPU)

    assert estimate.total(checkpointed=checkpointed) == pytest.approx(
        measured_peak(grounder, batch, precision), rel=0.15
    )
    assert estimate.checkpointed < 0.7 * estimate.activations


@pytest.mark.parametrize("name", ["adamw", "muon", "lion", "sgd"])
def test_the_estimated_optimiser_state_equals_the_real_one(name):
    grounder, batch = make_grounder(), make_batch(4)
    optim = OptimSettings(name=name, lr=1e-5)
    optimizer = build_optimizer(grounder, optim)
    torch.autograd.backward(sum(grounder(batch, 0).values()))
    for parameter in grounder.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    optimizer.step()

    estimate = estimate_memory(grounder, batch, optim=optim, settings=PLAIN, device=CPU)

    assert estimate.optimizer == pytest.approx(state_of(optimizer), rel=1e-6)
    assert estimate.optimizer > 0.9 * size(grounder.parameters())


def test_activations_grow_with_the_batch_and_the_rest_does_not():
    grounder = make_grounder()
    small, large = (estimate_memory(grounder, make_batch(n), optim=ADAMW, settings=PLAIN, device=CPU) for n in (4, 12))

    assert large.activations == pytest.approx(3 * small.activations, rel=0.05)
    assert (large.weights, large.gradients, large.optimizer) == (small.weights, small.gradients, small.optimizer)


def test_a_frozen_tower_keeps_neither_gradients_nor_activations():
    grounder, batch = make_grounder(), make_batch()
    whole = estimate_memory(grounder, batch, optim=ADAMW, settings=PLAIN, device=CPU)
    grounder.tower.requires_grad_(False).eval()
    frozen = estimate_memory(grounder, batch, optim=ADAMW, settings=PLAIN, device=CPU)

    assert frozen.weights == whole.weights
    assert frozen.gradients == size(grounder.head.parameters())
    assert frozen.activations < 0.5 * whole.activations
    assert frozen.checkpointed == frozen.activations


def test_the_average_is_a_second_model_without_frozen_parts():
    grounder, batch, settings = make_grounder(), make_batch(2), TrainSettings(ema_decay=0.9)
    whole = estimate_memory(grounder, batch, optim=ADAMW, settings=settings, device=CPU)
    grounder.tower.requires_grad_(False).eval()
    frozen = estimate_memory(grounder, batch, optim=ADAMW, settings=settings, device=CPU)

    assert whole.average == whole.weights
    assert frozen.average == whole.average - size(grounder.tower.parameters())


def test_measuring_leaves_no_trace_in_the_model():
    grounder = make_grounder(checkpoint_activations=True)
    estimate_memory(grounder, make_batch(2), optim=ADAMW, settings=PLAIN, device=CPU)

    assert grounder.tower.encoder.checkpoint_activations
    assert not grounder.tower.encoder._forward_hooks
    assert all(parameter.grad is None for parameter in grounder.parameters())


def test_the_first_samples_keep_every_field_and_its_padding():
    batch = make_batch(5)
    cut = first_samples(batch, 2)

    assert cut.ids == ("0", "1")
    for name in ("images", "token_ids", "token_is_pad", "word_roles"):
        assert torch.equal(getattr(cut, name), getattr(batch, name)[:2])
    assert torch.equal(cut.targets.masks, batch.targets.masks[:2])
    assert first_samples(make_batch(1), 2).ids == ("0",)
