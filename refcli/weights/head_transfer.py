"""Start the head of a new model from weights that hold only a head, such as those of a converted official decoder."""

from __future__ import annotations

from pathlib import Path

from refcli.config.load import validate
from refcli.config.schema import ModelSettings, Settings
from refcli.errors import ConfigError, WeightsError
from refcli.grounder import Grounder
from refcli.weights.conversions.plan import HeadOnlySettings
from refcli.weights.load import CONFIG_FILE, read_config, read_state
from refcli.weights.locate import resolve
from refcli.weights.misfits import misfits, summary

HEAD_PREFIX = "head."


def start_head_from(name: str, grounder: Grounder, settings: ModelSettings) -> tuple[str, ...]:
    """Copy the tensors of a head into a new grounder; returns what the user should know.

    The weights may have part of the head only: modules right below the head of which they have nothing (such as the
    pyramid that the published decoders lack) stay as they are. What they have must fit whole.

    Args:
        name: a weights directory that `refcli weights convert` wrote of a decoder without its tower.
        grounder: the new model, changed in place.
        settings: what `grounder` was built from.

    Raises:
        WeightsError: damaged weights, or others than of a head alone.
        UsageError: no such weights.
        ConfigError: another head, other tensors, or other shapes.
    """
    directory, where = resolve(name), f"train.init_head {name}"
    stored = read_head_settings(directory)
    if stored.head.name != settings.head.name:
        raise ConfigError(
            f"the weights are of the head {stored.head.name!r}, not of {settings.head.name!r}",
            where=where,
            hint=f"model.head.name={stored.head.name}",
        )
    given = {key.removeprefix(HEAD_PREFIX): tensor for key, tensor in read_state(directory).items()}
    wanted = grounder.head.state_dict()
    parts = {_part(key) for key in given}
    expected = {key: tensor for key, tensor in wanted.items() if _part(key) in parts}
    differences = _differences(stored, grounder, settings)
    if rows := misfits(expected, given):
        raise ConfigError(
            f"the weights of the head do not fit the settings {summary(rows, prefix=HEAD_PREFIX)}",
            where=where,
            hint="the weights were made with " + ", ".join(differences) if differences else None,
        )
    grounder.head.load_state_dict({**wanted, **given})
    rest = sorted({_part(key) for key in wanted} - parts)
    notes: tuple[str, ...] = (
        f"the head started from {name}: " + ", ".join(f"{HEAD_PREFIX}{part}" for part in sorted(parts)),
    )
    notes += (f"not in these weights: {', '.join(HEAD_PREFIX + part for part in rest)}",) if rest else ()
    notes += (f"they were made with {', '.join(differences)}; the settings differ",) if differences else ()
    return notes


def read_head_settings(directory: Path) -> HeadOnlySettings:
    """The settings stored beside the weights of a head alone.

    Raises:
        WeightsError: the directory holds something else.
        ConfigError: wrong settings.
    """
    values = read_config(directory)
    if "tower_dim" not in values:
        raise WeightsError(
            "these weights are not those of a head alone",
            where=str(directory),
            hint="a tower or a whole model is for train.init_weights (--init)",
        )
    return validate(HeadOnlySettings, values, where=str(directory / CONFIG_FILE))


def _part(key: str) -> str:
    """The module right below the head that a tensor belongs to."""
    return key.split(".")[0]


def _differences(stored: HeadOnlySettings, grounder: Grounder, settings: ModelSettings) -> list[str]:
    """What config.yaml says and the new model's settings do not, as `key=value`."""
    config: type[Settings] = grounder.head.Config
    ours = validate(config, settings.head.settings, where="model.head.settings").model_dump(mode="json")
    theirs = validate(config, stored.head.settings, where="config.yaml").model_dump(mode="json")
    said = [f"model.head.settings.{key}={theirs[key]}" for key in stored.head.settings if theirs[key] != ours[key]]
    wide = [] if stored.tower_dim == settings.tower.dim else [f"model.tower.dim={stored.tower_dim}"]
    return wide + said
