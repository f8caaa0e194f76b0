"""Parameter groups: weight decay, learning rates, and the matrices that Muon orthogonalises."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from refcli.config.schema import OptimSettings
from refcli.engine.optimisation.optimizer import BASE_LR, build_optimizer, group_parameters, set_lr
from refcli.errors import ConfigError


class Parts(nn.Module):
    """One parameter of every sort, with a tower of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.ModuleDict(
            {
                "words": nn.Embedding(50, 16),
                "patches": nn.Conv2d(3, 16, 4),
                "block_1": nn.Linear(16, 48),
                "block_2": nn.Linear(48, 16),
                "norm": nn.LayerNorm(16),
            }
        )
        self.tower.cls_token = nn.Parameter(torch.zeros(1, 1, 16))
        self.tower.positions = nn.Parameter(torch.zeros(9, 16))
        self.head = nn.ModuleDict(
            {
                "hidden": nn.Linear(16, 16),
                "box": nn.Linear(16, 4),
                "vocabulary": nn.Linear(16, 128),
                "up": nn.Linear(16, 64),
            }
        )
        self.head.scale = nn.Parameter(torch.tensor(1.0))
        self.head.queries = nn.Parameter(torch.zeros(5, 16))

    def param_depth(self, name: str) -> int | None:
        if not name.startswith("tower."):
            return None
        return {"block_1": 1, "block_2": 2, "norm": 2}.get(name.split(".")[1], 0)


def test_norms_biases_scalars_and_tables_of_vectors_do_not_decay():
    groups = group_parameters(Parts(), OptimSettings())

    assert {name for name, group in groups.items() if group.decays} == {
        "tower.patches.weight",
        "tower.block_1.weight",
        "tower.block_2.weight",
        "head.hidden.weight",
        "head.box.weight",
        "head.vocabulary.weight",
        "head.up.weight",
    }


def test_the_official_recipe_decays_everything():
    groups = group_parameters(Parts(), OptimSettings(decay_norms_and_biases=True))

    assert all(group.decays for group in groups.values())


def test_layer_decay_is_a_power_of_the_distance_from_the_top_of_the_tower():
    groups = group_parameters(Parts(), OptimSettings(layer_decay=0.5, tower_lr_scale=0.1))

    assert groups["tower.norm.weight"].lr_scale == pytest.approx(0.1)
    assert groups["tower.block_2.weight"].lr_scale == pytest.approx(0.1)
    assert groups["tower.block_1.bias"].lr_scale == pytest.approx(0.05)
    assert groups["tower.words.weight"].lr_scale == pytest.approx(0.025)
    assert groups["head.box.weight"].lr_scale == 1.0


def test_frozen_parameters_are_in_no_group():
    parts = Parts()
    parts.tower.requires_grad_(False)

    assert all(name.startswith("head.") for name in group_parameters(parts, OptimSettings()))


def test_only_matrices_between_hidden_layers_are_for_muon():
    groups = group_parameters(Parts(), OptimSettings())

    assert {name for name, group in groups.items() if group.is_hidden_matrix} == {
        "tower.block_1.weight",
        "tower.block_2.weight",
        "head.hidden.weight",
        "head.up.weight",
    }


def test_muon_orthogonalises_its_matrices_and_adam_updates_the_rest():
    parts = Parts()
    settings = OptimSettings(name="muon", lr=0.1, weight_decay=0.0)
    before = {name: parameter.detach().clone() for name, parameter in parts.named_parameters()}
    optimizer = build_optimizer(parts, settings)
    torch.manual_seed(0)
    for parameter in parts.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()

    for name, parameter in parts.named_parameters():
        change = parameter.detach() - before[name]
        if group_parameters(parts, settings)[name].is_hidden_matrix:
            singular = torch.linalg.svdvals(change)
            assert singular.max() / singular.min() < 2.5, f"{name}: Newton-Schulz brings all singular values near one"
        else:
            torch.testing.assert_close(change.abs(), torch.full_like(change, 0.1), rtol=1e-3, atol=1e-4)


def test_adamw_is_the_fused_kernel_and_equals_the_plain_one():
    torch.manual_seed(0)
    ours, plain = Parts(), Parts()
    plain.load_state_dict(ours.state_dict())
    settings = OptimSettings(lr=1e-2, weight_decay=0.1, betas=(0.8, 0.95), decay_norms_and_biases=True)
    optimizer = build_optimizer(ours, settings)
    oracle = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.1, betas=(0.8, 0.95), foreach=False)
    for _ in range(3):
        for here, there in zip(ours.parameters(), plain.parameters(), strict=True):
            here.grad = torch.randn_like(here)
            there.grad = here.grad.clone()
        optimizer.step()
        oracle.step()

    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["fused"]
    for here, there in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "muon", "lion", "adopt", "sgd", "lamb"])
def test_any_optimiser_of_timm_steps_with_its_own_groups(name):
    parts = Parts()
    optimizer = build_optimizer(parts, OptimSettings(name=name, lr=0.01, layer_decay=0.5))
    before = [parameter.detach().clone() for parameter in parts.parameters()]
    for _ in range(2):  # ADOPT only records the first gradient
        for parameter in parts.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()

    assert all(not torch.equal(here, there) for here, there in zip(parts.parameters(), before, strict=True))


def test_the_schedule_scales_every_group_by_its_own_rate():
    optimizer = build_optimizer(Parts(), OptimSettings(lr=0.4, layer_decay=0.5))
    set_lr(optimizer, 0.25)

    assert {group["lr"] for group in optimizer.param_groups} == {0.1, 0.05, 0.025}
    assert all(group["lr"] == group[BASE_LR] * 0.25 for group in optimizer.param_groups)


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        (OptimSettings(name="adamv"), "did you mean"),
        (OptimSettings(name="adamw", options={"no_such_option": 1}), None),
    ],
)
def test_an_impossible_optimiser_is_a_config_error(settings, hint):
    with pytest.raises(ConfigError) as caught:
        build_optimizer(Parts(), settings)

    assert caught.value.where.startswith("optim.")
    assert hint is None or hint in caught.value.hint


def test_nothing_to_train_is_a_config_error():
    with pytest.raises(ConfigError, match="nothing to train"):
        build_optimizer(Parts().requires_grad_(False), OptimSettings())
