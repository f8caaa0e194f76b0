"""`refcli presets`: list, show, copy and check the settings that ship with refcli."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from refcli.config.pretraining import PretrainSettings
    from refcli.config.schema import FinetuneSettings

    Loader = Callable[[str], PretrainSettings | FinetuneSettings]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, show, copy and check presets.")

Name = Annotated[str, typer.Argument(help="NAME, or GROUP/NAME if NAME is ambiguous.", metavar="NAME")]


@app.command("list")
def list_command() -> None:
    """List all presets with their purpose."""
    from refcli.cli.output import write_line
    from refcli.config.presets import headline, list_presets, preset_groups, preset_path

    rows = [(f"{group}/{name}", preset_path(group, name)) for group in preset_groups() for name in list_presets(group)]
    width = max((len(name) for name, _ in rows), default=0)
    for name, path in rows:
        write_line(f"{name:{width}}  {headline(path)}".rstrip())


@app.command("show")
def show_command(
    name: Name,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Print all settings with their values, not only those in the file.")
    ] = False,
) -> None:
    """Print a preset as YAML."""
    from refcli.cli.output import write_line
    from refcli.config.explain import explain
    from refcli.config.presets import find_preset
    from refcli.errors import UsageError

    path = find_preset(name)
    if not resolved:
        write_line(path.read_text(encoding="utf-8").rstrip("\n"))
        return
    group = path.parent.name
    if group not in loaders():
        raise UsageError(f"{group} presets cannot be resolved", where=f"preset {name}", hint="leave out --resolved")
    from refcli.heads.table import with_head_defaults

    settings = loaders()[group](str(path))
    whole = settings.model_copy(update={"model": with_head_defaults(settings.model)})
    write_line(explain(whole).rstrip("\n"))


@app.command("copy")
def copy_command(
    name: Name,
    file: Annotated[Path, typer.Argument(help="The file to write; it must not exist.", metavar="FILE")],
) -> None:
    """Copy a preset to a new file, to edit and pass as --preset."""
    from refcli.cli.output import log
    from refcli.config.presets import find_preset
    from refcli.errors import UsageError
    from refcli.files import write_atomically

    path = find_preset(name)
    if file.exists():
        raise UsageError("the file exists already", where=str(file), hint="choose another name")
    if not file.parent.is_dir():
        raise UsageError("there is no such directory", where=str(file.parent))
    write_atomically(file, path.read_bytes())
    log(f"wrote {file}")


@app.command("check")
def check_command(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="NAME, GROUP/NAME or a YAML file; all presets by default.", metavar="NAME"),
    ] = None,
) -> None:
    """Check presets for unknown settings and invalid values.

    Prints a line for each valid preset. Exit code 2: a preset is invalid.
    """
    from refcli.cli.errors import report_error
    from refcli.cli.output import write_line
    from refcli.config.presets import find_preset, list_presets, preset_groups
    from refcli.errors import ConfigError, ExitCode

    everything = [f"{group}/{name}" for group in preset_groups() for name in list_presets(group)]
    failed = False
    for name in names or everything:
        try:
            is_file = name.endswith((".yaml", ".yml"))
            path = Path(name) if is_file else find_preset(name)
            check_preset(path, group=group_of(path) if is_file else path.parent.name)
        except ConfigError as error:
            failed = True
            report_error(error)
        else:
            write_line(f"ok {name}")
    if failed:
        raise typer.Exit(ExitCode.USAGE)


def loaders() -> dict[str, Loader]:
    """The loader of the presets of each group."""
    from refcli.config.load import load_finetune, load_pretrain

    return {"finetune": load_finetune, "pretrain": load_pretrain}


def check_preset(path: Path, *, group: str) -> None:
    """Resolve a preset and the settings of its head, which only the head can check.

    Raises:
        ConfigError: an unknown key or a value that does not fit, with the file and the key.
    """
    from refcli.config.load import stages_of
    from refcli.config.schema import FinetuneSettings
    from refcli.errors import ConfigError
    from refcli.heads.table import head_class, head_settings

    if group not in loaders():
        raise ConfigError(f"no command reads {group} presets", where=str(path), hint="known: " + ", ".join(loaders()))
    settings = loaders()[group](str(path))
    head = settings.model.head
    try:
        head_class(head.name)
    except ConfigError as error:
        raise ConfigError(error.message, where=f"{path}: model.head.name", hint=error.hint) from error
    head_settings(head, where=f"{path}: model.head.settings")
    stages = stages_of(settings) if isinstance(settings, FinetuneSettings) else {}
    for name, stage in stages.items():
        head_settings(stage.model.head, where=f"{path}: stages.{name}.model.head.settings")


def group_of(file: Path) -> str:
    """The group that has the preset which a file extends and whose settings have most of the file's keys.

    Raises:
        ConfigError: the file cannot be read.
    """
    from refcli.config.load import read_yaml
    from refcli.config.presets import list_presets
    from refcli.config.pretraining import PretrainSettings
    from refcli.config.schema import FinetuneSettings

    keys = {"finetune": FinetuneSettings.model_fields, "pretrain": PretrainSettings.model_fields}
    values = read_yaml(file)
    base = values.get("extends")

    def fit(group: str) -> tuple[bool, int]:
        return base in list_presets(group), len(keys[group].keys() & values.keys())

    return max(keys, key=fit)
