"""A head starts from weights without a tower: their tensors are copied, missing parts keep their values."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from refcli.config.schema import HeadChoice, ModelSettings, TowerSettings
from refcli.errors import ConfigError, WeightsError
from refcli.grounder import Grounder
from refcli.weights.directory import save_weights
from refcli.weights.layout import HeadOnlySettings
from refcli.weights.transfer import start_head_from

SMALL = {"dim": 16, "pyramid_channels": [8, 8, 8, 16], "lite": True}


def model(name: str = "cgformer", dim: int = 32, **head: object) -> ModelSettings:
    tower = TowerSettings(
        image_size=32, patch_size=8, dim=dim, layers=2, heads=2, ffn_dim=32, vocabulary_size=700, max_text_positions=66
    )
    return ModelSettings(tower=tower, head=HeadChoice(name=name, settings={**SMALL, **head}))


def fresh(settings: ModelSettings, seed: int) -> Grounder:
    torch.manual_seed(seed)
    return Grounder.from_settings(settings)


def write_decoder(directory: Path, settings: ModelSettings, *, without: str = "pyramid") -> dict[str, torch.Tensor]:
    """A directory with the head of a new model without one part, as `refcli weights convert` writes it."""
    state = fresh(settings, seed=1).head.state_dict()
    kept = {f"head.{key}": tensor.clone() for key, tensor in state.items() if not key.startswith(without)}
    directory.mkdir()
    save_file(kept, directory / "model.safetensors")
    values = HeadOnlySettings(tower_dim=settings.tower.dim, head=settings.head).model_dump(mode="json")
    (directory / "config.yaml").write_text(yaml.safe_dump(values))
    return kept


def test_existing_tensors_are_copied_and_all_others_keep_their_values(tmp_path):
    given = write_decoder(tmp_path / "w", model())
    grounder = fresh(model(), seed=2)
    before = {key: tensor.clone() for key, tensor in grounder.state_dict().items()}
    notes = start_head_from(str(tmp_path / "w"), grounder, model())

    after = grounder.state_dict()
    assert all(torch.equal(after[key], given.get(key, before[key])) for key in after)
    changed = {key.split(".")[1] for key in after if not torch.equal(after[key], before[key])}
    assert changed == {"decoder", "projector"}
    assert any("head.decoder, head.projector" in note for note in notes)
    assert any("not in these weights: head.pyramid" in note for note in notes)


def test_differing_settings_that_change_no_shape_are_reported(tmp_path):
    write_decoder(tmp_path / "w", model(dropout=0.3))
    notes = start_head_from(str(tmp_path / "w"), fresh(model(), seed=2), model())
    assert any("model.head.settings.dropout=0.3" in note for note in notes)


def test_another_head_is_refused_by_name(tmp_path):
    write_decoder(tmp_path / "w", model())
    shared = model().model_copy(update={"head": HeadChoice(name="shared_ris", settings={"dim": 16, "heads": 2})})
    with pytest.raises(ConfigError, match="of the head 'cgformer', not of 'shared_ris'"):
        start_head_from(str(tmp_path / "w"), fresh(shared, seed=2), shared)


def test_other_shapes_are_refused_by_tensor_with_the_settings_that_fit(tmp_path):
    write_decoder(tmp_path / "w", model(dim=32))
    wider = model(dim=64)
    with pytest.raises(ConfigError, match=r"head\.decoder\.\S+ has shape") as caught:
        start_head_from(str(tmp_path / "w"), fresh(wider, seed=2), wider)
    assert "model.tower.dim=32" in caught.value.hint
    finer = model(position_grid=(6, 6))
    with pytest.raises(ConfigError, match=r"positions\S* has shape \(16, 16\) instead of \(36, 16\)"):
        start_head_from(str(tmp_path / "w"), fresh(finer, seed=2), finer)


@pytest.mark.parametrize(("name", "problem"), [("decoder.odd", "not part of the model"), (None, "is missing")])
def test_an_incomplete_part_is_refused(tmp_path, name, problem):
    given = write_decoder(tmp_path / "w", model())
    changed = dict(list(given.items())[1:]) if name is None else given | {f"head.{name}": torch.zeros(1)}
    save_file(changed, tmp_path / "w" / "model.safetensors")
    grounder = fresh(model(), seed=2)
    before = {key: tensor.clone() for key, tensor in grounder.state_dict().items()}
    with pytest.raises(ConfigError, match=problem):
        start_head_from(str(tmp_path / "w"), grounder, model())
    assert all(torch.equal(tensor, before[key]) for key, tensor in grounder.state_dict().items())


def test_half_precision_weights_are_copied_and_integers_are_refused(tmp_path):
    given = write_decoder(tmp_path / "w", model())
    halves = {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in given.items()}
    save_file(halves, tmp_path / "w" / "model.safetensors")
    grounder = fresh(model(), seed=2)
    start_head_from(str(tmp_path / "w"), grounder, model())
    assert all(
        torch.equal(tensor.to(halves[name].dtype), halves[name])
        for name, tensor in grounder.state_dict().items()
        if name in halves
    )
    name = next(name for name, tensor in given.items() if tensor.is_floating_point())
    save_file(given | {name: torch.ones_like(given[name], dtype=torch.int64)}, tmp_path / "w" / "model.safetensors")
    with pytest.raises(ConfigError, match=f"{name} holds int64 instead of floating-point numbers"):
        start_head_from(str(tmp_path / "w"), fresh(model(), seed=2), model())


def test_a_complete_model_is_not_accepted_as_a_head(tmp_path):
    save_weights(tmp_path / "w", fresh(model(), seed=1), model(), meta={})
    with pytest.raises(WeightsError, match="a model, not a head without a tower") as caught:
        start_head_from(str(tmp_path / "w"), fresh(model(), seed=2), model())
    assert "--init" in caught.value.hint
