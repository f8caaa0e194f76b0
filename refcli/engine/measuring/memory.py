"""The memory of a training step, estimated from the sizes of its tensors and two small forward passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from refcli.config.schema import OptimSettings, TrainSettings
from refcli.contracts.batch import Batch
from refcli.engine.optimisation.optimizer import build_optimizer, group_parameters
from refcli.model.encoder import MultiwayEncoder

STEPS = (0, 1)
"""Even and odd steps of an objective may differ; the larger estimate counts."""
PROBE_DIM = 16
"""Side of the matrix on which the state of an optimiser is measured."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes per process in use at the end of a forward pass; temporary buffers come on top.

    weights + gradients + optimiser state + average + activations: a gradient is as large as its parameter, the average
    is a second model without the frozen parts, and activations are what autograd keeps for the backward pass.
    """

    weights: int
    """Parameters and buffers, frozen ones included."""
    gradients: int
    optimizer: int
    """State per parameter, measured on a small layer, separately for the matrices that Muon treats differently."""
    average: int
    activations: int
    """a + b * batch size, from forward passes over one sample (a + b) and two (a + 2 b)."""
    checkpointed: int
    """Activations with model.tower.checkpoint_activations: every block keeps its input, plus the larger of what is kept
    outside the blocks and, later in the backward pass, of all that one block keeps."""

    def total(self, *, checkpointed: bool) -> int:
        """The sum."""
        fixed = self.weights + self.gradients + self.optimizer + self.average
        return fixed + (self.checkpointed if checkpointed else self.activations)


class _Kept(NamedTuple):
    """Bytes that autograd keeps for the backward pass, without the weights themselves."""

    total: int = 0
    blocks: int = 0
    """The part of it inside the encoders' blocks."""
    largest_block: int = 0
    inputs: int = 0
    """The inputs of all these blocks."""

    @property
    def checkpointed(self) -> int:
        """The maximum with checkpoints around the blocks."""
        return self.inputs + max(self.total - self.blocks, self.largest_block)


def estimate_memory(
    objective: nn.Module, batch: Batch, *, optim: OptimSettings, settings: TrainSettings, device: torch.device
) -> MemoryEstimate:
    """The estimate for batches like `batch`; runs the objective on its first samples.

    Args:
        objective: on `device` and in training mode; its frozen parts need no gradient.
    """
    trained = {name: parameter for name, parameter in objective.named_parameters() if parameter.requires_grad}
    buffers = sum(map(_bytes, objective.buffers()))
    weights = sum(map(_bytes, objective.parameters())) + buffers
    of_matrix, of_others = _state_per_parameter(optim)
    groups = group_parameters(objective, optim)
    state = sum(
        parameter.numel() * (of_matrix if groups[name].is_hidden_matrix else of_others)
        for name, parameter in trained.items()
    )
    activations = checkpointed = 0
    for step in STEPS:
        one, two = (_kept(objective, first_samples(batch, n).to(device), step, settings) for n in (1, 2))
        kept = _Kept(*(a + (len(batch.ids) - 1) * (b - a) for a, b in zip(one, two, strict=True)))
        activations, checkpointed = max(activations, kept.total), max(checkpointed, kept.checkpointed)
    gradients = sum(map(_bytes, trained.values()))
    return MemoryEstimate(
        weights=weights,
        gradients=gradients,
        optimizer=round(state),
        average=gradients + buffers if settings.ema_decay is not None else 0,
        activations=activations,
        checkpointed=checkpointed,
    )


def first_samples(batch: Batch, count: int) -> Batch:
    """The first samples of a batch, with its padding."""
    targets = batch.targets.first(count)
    return replace(
        batch,
        images=batch.images[:count],
        token_ids=batch.token_ids[:count],
        token_is_pad=batch.token_is_pad[:count],
        targets=targets,
        ids=batch.ids[:count],
        word_roles=None if batch.word_roles is None else batch.word_roles[:count],
    )


def _kept(objective: nn.Module, batch: Batch, step: int, settings: TrainSettings) -> _Kept:
    """Bytes that a forward pass keeps for its backward pass, without activation checkpoints whatever the settings."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*objective.parameters(), *objective.buffers())}
    storages: dict[int, int] = {}
    encoders: list[_Kept] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # keep it alive, so that no other tensor gets its address

    with ExitStack() as stack:
        for module in objective.modules():
            if isinstance(module, MultiwayEncoder):
                stack.enter_context(_recorded(module, storages, encoders))
        stack.enter_context(saved_tensors_hooks(keep, lambda tensor: tensor))
        stack.enter_context(
            torch.autocast(batch.images.device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16")
        )
        losses = objective(batch, step)
        assert losses  # they keep the graph alive, and with it the activations
    return _Kept(
        total=sum(storages.values()),
        blocks=sum(kept.blocks for kept in encoders),
        largest_block=max((kept.largest_block for kept in encoders), default=0),
        inputs=sum(kept.inputs for kept in encoders),
    )


@contextmanager
def _recorded(encoder: MultiwayEncoder, storages: Mapping[int, int], encoders: list[_Kept]) -> Iterator[None]:
    """Record what the blocks of an encoder add to `storages`, with its activation checkpoints switched off."""
    before: list[int] = []

    def enter(module: nn.Module, given: tuple[Any, ...]) -> None:
        before.append(sum(storages.values()))

    def leave(module: nn.Module, given: tuple[Any, ...], result: object) -> None:
        blocks, number = sum(storages.values()) - before.pop(), len(encoder.blocks)
        if blocks:  # not for a frozen tower, or a pass without gradients
            tokens = sum(_bytes(part) for part in given[0])
            encoders.append(_Kept(blocks=blocks, largest_block=blocks // number, inputs=number * tokens))

    checkpoints, encoder.checkpoint_activations = encoder.checkpoint_activations, False
    handles = (encoder.register_forward_pre_hook(enter), encoder.register_forward_hook(leave))
    try:
        yield
    finally:
        encoder.checkpoint_activations = checkpoints
        for handle in handles:
            handle.remove()


def _state_per_parameter(optim: OptimSettings) -> tuple[float, float]:
    """Bytes of optimiser state per parameter of a matrix between hidden layers, and of any other parameter."""
    probe = nn.Linear(PROBE_DIM, PROBE_DIM)
    optimizer = build_optimizer(probe, optim)
    for parameter in probe.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    per_parameter = [
        sum(_bytes(value) for value in optimizer.state[p].values() if isinstance(value, Tensor) and value.numel() > 1)
        / p.numel()
        for p in (probe.weight, probe.bias)
    ]
    return per_parameter[0], per_parameter[1]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
