"""Load settings from a preset or YAML file and `--set` overrides, and check them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from refcli.config.own_heads import import_own_head
from refcli.config.presets import preset_groups, preset_path
from refcli.config.pretraining import PretrainSettings
from refcli.config.schema import FinetuneSettings
from refcli.config.yaml_text import MAX_DEPTH, parse_yaml, read_mapping
from refcli.errors import ConfigError
from refcli.tables import did_you_mean

S = TypeVar("S", bound=BaseModel)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file of settings.

    Raises:
        ConfigError: missing, not YAML, larger than any settings, or not a mapping at the top.
    """
    return read_mapping(path)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` updated with `over`: mappings are merged key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        merged[key] = merge(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return merged


def read_preset(group: str, name_or_path: str) -> tuple[Path, dict[str, Any]]:
    """The file and the values of a preset, with `extends: NAME` (one level, same group) resolved.

    Args:
        group: "finetune", "evaluate", ...
        name_or_path: the name of a preset, with or without its group, or the path of a YAML file (recognised by its
            suffix or a separator).
    """
    names_group = name_or_path.partition("/")[0] in preset_groups() and not os.path.lexists(name_or_path)
    is_path = name_or_path.endswith((".yaml", ".yml")) or ("/" in name_or_path and not names_group)
    path = Path(name_or_path) if is_path else preset_path(group, name_or_path)
    values = read_yaml(path)
    base_name = values.pop("extends", None)
    if base_name is None:
        return path, values
    base = read_yaml(preset_path(group, str(base_name)))
    if "extends" in base:
        raise ConfigError(
            f"extends goes one level deep, but {base_name!r} itself extends {base['extends']!r}",
            where=f"{path}: extends",
            hint=f"extend {base['extends']!r} and repeat what {base_name!r} adds",
        )
    return path, merge(base, values)


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Update `values` with `key.sub=value` strings; each value is read as YAML.

    Raises:
        ConfigError: an override without "=", with an empty key, or with a value that is not YAML.
    """
    merged = dict(values)
    for override in overrides:
        dotted, equals, text = override.partition("=")
        keys = dotted.strip().split(".")
        if not equals or not all(keys) or len(keys) > MAX_DEPTH:
            raise ConfigError("an override looks like key.sub=value", where=f"--set {override}")
        nested: Any = parse_yaml(text, what=f"the value {text[:200]!r}", where=f"--set {override}")
        for key in reversed(keys):
            nested = {key: nested}
        merged = merge(merged, nested)
    return merged


def validate(kind: type[S], values: Mapping[str, Any], *, where: str) -> S:
    """Check `values` against a settings class.

    Args:
        where: the file or argument that the values come from, for the error.

    Raises:
        ConfigError: an unknown key (the hint names the nearest known one) or a value that does not fit.
    """
    return _validate(kind, values, origin=lambda key: f"{where}: {key}" if key else where)


def load_finetune(preset_or_path: str, overrides: Sequence[str] = ()) -> FinetuneSettings:
    """Settings of a fine-tuning run: schema defaults <- preset or file (also a run.yaml) <- overrides.

    Raises:
        ConfigError: an unknown or invalid setting, with the file (or `--set`) and the key; an override of a setting
            that the stages set themselves.
    """
    path, values = read_preset("finetune", preset_or_path)
    origin = _origin(path, overrides)
    _check_stage_names(values.get("stages"), overrides)
    settings = _validate(FinetuneSettings, apply_overrides(values, overrides), origin=origin)
    import_own_head(settings.model.head.name)
    for override in overrides:
        given = set(_dotted_keys(apply_overrides({}, [override])))
        for name, stage in settings.stages.items():
            for key in given & set(_dotted_keys(stage.model_dump())):
                raise ConfigError(
                    f"the stages set {key} themselves, so the override would have no effect",
                    where=f"--set {override}",
                    hint=f"--set stages.{name}.{key}=...; the stages are " + ", ".join(settings.stages),
                )
    _stages(settings, origin)
    return settings


def _check_stage_names(stages: object, overrides: Sequence[str]) -> None:
    """Raises ConfigError where an override names a stage that a preset with stages does not have."""
    if not stages or not isinstance(stages, Mapping):
        return
    for override in overrides:
        first, _, rest = override.partition("=")[0].strip().partition(".")
        name = rest.partition(".")[0]
        if first == "stages" and name and name not in stages:
            raise ConfigError(
                f"there is no stage called {name!r}",
                where=f"--set {override}",
                hint=did_you_mean(name, map(str, stages)),
            )


def stages_of(settings: FinetuneSettings) -> dict[str, FinetuneSettings]:
    """The complete settings of every stage by name, in order; empty for a run without stages.

    Only the first has `train.init_weights` and `train.init_head`; the others start from the previous one.

    Raises:
        ConfigError: a setting of a stage is unknown or does not fit.
    """
    return _stages(settings, lambda key: key)


def _stages(settings: FinetuneSettings, origin: Callable[[str], str]) -> dict[str, FinetuneSettings]:
    common = settings.model_dump(exclude={"stages"})
    stages: dict[str, FinetuneSettings] = {}
    for name, changes in settings.stages.items():
        values = merge(common, changes.model_dump())
        stages[name] = _validate(FinetuneSettings, values, origin=_below(f"stages.{name}", origin))
        common["train"] |= {"init_weights": None, "init_head": None}
    return stages


def _below(prefix: str, origin: Callable[[str], str]) -> Callable[[str], str]:
    """The origin of the keys below another one."""
    return lambda key: origin(f"{prefix}.{key}" if key else prefix)


def _dotted_keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _dotted_keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def load_pretrain(preset_or_path: str, overrides: Sequence[str] = ()) -> PretrainSettings:
    """Settings of a pre-training run; see `load_finetune`."""
    path, values = read_preset("pretrain", preset_or_path)
    settings = _validate(PretrainSettings, apply_overrides(values, overrides), origin=_origin(path, overrides))
    import_own_head(settings.model.head.name)
    return settings


def _origin(path: Path, overrides: Sequence[str]) -> Callable[[str], str]:
    """A function that names the origin of a dotted key: the last override of it, or the file."""

    def origin(key: str) -> str:
        for override in reversed(overrides):
            dotted = override.partition("=")[0].strip()
            if key == dotted or key.startswith(dotted + ".") or dotted.startswith(key + "."):
                return f"--set {override}"
        return f"{path}: {key}" if key else str(path)

    return origin


def _validate(kind: type[S], values: Mapping[str, Any], *, origin: Callable[[str], str]) -> S:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        messages: list[str] = []
        places: list[str] = []
        hint: str | None = None
        for problem in error.errors(include_url=False):
            location = problem["loc"]
            places.append(origin(".".join(str(part) for part in location)))
            if problem["type"] == "extra_forbidden":
                messages.append(f"there is no setting called {str(location[-1])!r}")
                hint = hint or _hint(kind, location)
            else:
                reason = problem["msg"].removeprefix("Value error, ")
                if problem["type"] == "missing":
                    reason, hint = "it has no default and must be given", hint or _choices(kind, location)
                messages.append(f"{'.'.join(map(str, location)) or 'settings'}: {reason}")
        raise ConfigError("; ".join(messages), where=", ".join(places), hint=hint) from error


def _choices(kind: type[BaseModel], location: tuple[int | str, ...]) -> str | None:
    """The values of a setting that has a fixed number of them."""
    field = kind.model_fields.get(str(location[0]))
    choices = get_args(field.annotation) if field is not None and len(location) == 1 else ()
    names = [str(choice) for choice in choices if isinstance(choice, str)]
    return f"{location[0]} is one of: {', '.join(names)}" if names else None


def _hint(kind: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """The known keys at the level of an unknown one, the nearest first."""
    level = kind
    for part in location[:-1]:
        if part not in level.model_fields:  # the name of a stage: the levels below are those of any stage
            continue
        annotation = level.model_fields[str(part)].annotation
        choices = (annotation, *get_args(annotation))
        inner = (choice for choice in choices if isinstance(choice, type) and issubclass(choice, BaseModel))
        level = next(inner, level)
    return did_you_mean(str(location[-1]), level.model_fields)
