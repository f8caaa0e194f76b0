"""Presets: one YAML file per run, shipped with the package and found by name."""

from __future__ import annotations

from pathlib import Path

import refcli
from refcli.errors import ConfigError
from refcli.tables import did_you_mean


def data_specs_root() -> Path:
    """The folder of data specifications: inside an installed package, else beside `refcli/` in a checkout.

    Raises:
        ConfigError: neither exists, so the installation is broken.
    """
    package = Path(refcli.__file__).resolve().parent
    candidates = (package / "_data_specs", package.parent / "data_specs")
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise ConfigError(
        "the data specifications are not installed",
        where=" or ".join(str(candidate) for candidate in candidates),
        hint="reinstall refcli",
    )


def preset_groups() -> list[str]:
    """Names of the groups that hold at least one preset ("finetune", "evaluate", ...), sorted."""
    return sorted(path.name for path in (data_specs_root() / "presets").iterdir() if any(path.glob("*.yaml")))


def list_presets(group: str) -> list[str]:
    """Names of the presets of a group, sorted; empty if there is no such group."""
    return sorted(path.stem for path in (data_specs_root() / "presets" / group).glob("*.yaml"))


def preset_path(group: str, name: str) -> Path:
    """The file of preset `name`, with or without its group, as `refcli presets list` prints it.

    Raises:
        ConfigError: the group has no such preset; the hint names the nearest one, or the group that has it.
    """
    known = list_presets(group)
    stem = name.removeprefix(f"{group}/")
    if stem in known:
        return data_specs_root() / "presets" / group / f"{stem}.yaml"
    others = [f"{other}/{stem}" for other in preset_groups() if stem in list_presets(other)]
    others += [name] if name in (f"{other}/{each}" for other in preset_groups() for each in list_presets(other)) else []
    raise ConfigError(
        f"there is no {group} preset called {stem!r}",
        where=f"preset {name}",
        hint=f"it is {others[0]!r}" if others else did_you_mean(stem, known),
    )


def find_preset(name: str) -> Path:
    """The file of `GROUP/NAME`, or of `NAME` where only one group has it.

    Raises:
        ConfigError: unknown or ambiguous.
    """
    group, _, stem = name.partition("/")
    if stem and group in preset_groups():
        return preset_path(group, stem)
    groups = [group for group in preset_groups() if name in list_presets(group)]
    if len(groups) == 1:
        return preset_path(groups[0], name)
    everything = [f"{group}/{stem}" for group in preset_groups() for stem in list_presets(group)]
    if groups:
        raise ConfigError(
            f"{len(groups)} presets are called {name!r}",
            where=f"preset {name}",
            hint="name one: " + ", ".join(f"{group}/{name}" for group in groups),
        )
    raise ConfigError(
        f"there is no preset called {name!r}",
        where=f"preset {name}",
        hint=did_you_mean(
            name,
            [preset.partition("/")[2] for preset in everything],
            rest="known: " + (", ".join(everything) or "none"),
        ),
    )


def headline(path: Path) -> str:
    """The first comment line of a preset, which states its purpose; empty without one."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            return line.lstrip("# ").rstrip()
        if line.strip():
            break
    return ""
