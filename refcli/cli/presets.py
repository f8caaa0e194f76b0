"""`refcli presets`: list, show and copy the runs that ship with refcli."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, show and copy presets.")

Name = Annotated[str, typer.Argument(help="NAME, or GROUP/NAME where several groups have it.")]


@app.command("list")
def list_command() -> None:
    """One line per preset: GROUP/NAME and what it is for."""
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
        bool, typer.Option("--resolved", help="Every setting with its value, not only the file.")
    ] = False,
) -> None:
    """Print a preset as YAML."""
    from refcli.cli.output import write_line
    from refcli.config.explain import explain
    from refcli.config.load import load_finetune
    from refcli.config.presets import find_preset
    from refcli.errors import UsageError

    path = find_preset(name)
    if not resolved:
        write_line(path.read_text(encoding="utf-8").rstrip("\n"))
        return
    if path.parent.name != "finetune":
        raise UsageError("only finetune presets can be resolved", where=f"preset {name}", hint="leave out --resolved")
    write_line(explain(load_finetune(str(path))).rstrip("\n"))


@app.command("copy")
def copy_command(
    name: Name,
    file: Annotated[Path, typer.Argument(help="The file to write; it must not exist yet.")],
) -> None:
    """Copy a preset to a file of your own; give that file as --preset."""
    from refcli.cli.output import say
    from refcli.config.presets import find_preset
    from refcli.errors import UsageError
    from refcli.files import write_atomically

    path = find_preset(name)
    if file.exists():
        raise UsageError("the file is already there", where=str(file), hint="choose another name")
    if not file.parent.is_dir():
        raise UsageError("there is no such directory", where=str(file.parent))
    write_atomically(file, path.read_bytes())
    say(f"wrote {file}")
