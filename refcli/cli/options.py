"""Options that several commands share, said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Preset = Annotated[
    str | None,
    typer.Option(
        "--preset", "-p", help="Name of a preset (see `refcli presets list`) or a YAML file.", metavar="NAME|FILE"
    ),
]
Data = Annotated[
    Path | None, typer.Option("--data", "-d", help="The store that `refcli prepare-data` wrote.", metavar="STORE")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="Change one setting; may be given several times.", metavar="KEY.SUB=VALUE"),
]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.", metavar="DEVICE")]
