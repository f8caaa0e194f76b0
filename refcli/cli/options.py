"""Options that several commands share."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

WEIGHTS_NAMES = "a NAME of `refcli weights list`, a pulled hf://... address, or a directory such as RUN/weights"
"""The accepted forms of weights, for help texts."""
WEIGHTS_METAVAR = "NAME|hf://...|DIR"


class PrecisionChoice(str, Enum):
    """Type of the model's weights."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


Precision = Annotated[PrecisionChoice, typer.Option("--precision", help="Type of the weights; auto is the fastest.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="Pairs per forward pass.", min=1)]
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
Device = Annotated[
    str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps. Default: auto.", metavar="DEVICE")
]
OutForce = Annotated[
    bool, typer.Option("--force", help="First remove refcli's earlier files in --out; other files stay.")
]
OutResume = Annotated[bool, typer.Option("--resume", help="Complete the earlier run in --out.")]
ImageURL = Annotated[
    str | None,
    typer.Option(
        "--image-url",
        help="label-studio: the address of an image; {image} stands for its path. Example: "
        "'/data/local-files/?d={image}' for Label Studio's local storage.",
        metavar="URL",
    ),
]
IMAGE_URL_NOTE = "note: the tasks give the images as paths; add --image-url so that Label Studio can open them"
