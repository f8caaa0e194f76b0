"""Options that several commands share, said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

WEIGHTS_NAMES = "a NAME of `refcli weights list`, a pulled hf://... address, or a directory such as RUN/weights"
"""What every command takes that reads weights."""
WEIGHTS_METAVAR = "NAME|hf://...|DIR"
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
Nproc = Annotated[
    str | None,
    typer.Option("--nproc", help="Train in so many processes on this machine; auto: one per GPU.", metavar="N|auto"),
]
Nnodes = Annotated[
    str | None,
    typer.Option("--nnodes", help="On so many machines; give the same command to each.", metavar="N|MIN:MAX"),
]
RdzvEndpoint = Annotated[
    str | None,
    typer.Option("--rdzv-endpoint", help="Where several machines meet: one of them and a port.", metavar="HOST:PORT"),
]
MaxRestarts = Annotated[
    int, typer.Option("--max-restarts", min=0, help="Go on from the last checkpoint after so many crashes.")
]
PrintSbatch = Annotated[
    bool, typer.Option("--print-sbatch", help="Print a SLURM script for this command line; start nothing.")
]
OutForce = Annotated[bool, typer.Option("--force", help="Remove what refcli wrote in --out before, and nothing else.")]
OutResume = Annotated[bool, typer.Option("--resume", help="Complete the earlier run in --out.")]
