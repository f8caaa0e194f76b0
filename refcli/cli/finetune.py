"""`refcli finetune`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from refcli.cli.launching import LaunchOptions, MaxRestarts, Nnodes, Nproc, PrintSbatch, RdzvEndpoint
from refcli.cli.options import Data, Device, Preset, Set
from refcli.cli.training import DryRun, Force, Init, Out, Resume, TrainingOptions


def command(
    out: Out,
    preset: Preset = None,
    data: Data = None,
    set_: Set = None,
    resume: Resume = False,
    force: Force = False,
    init: Init = None,
    init_head: Annotated[
        str | None,
        typer.Option(
            "--init-head",
            help="Start the head from the weights of a head alone, such as a converted official decoder.",
        ),
    ] = None,
    device: Device = None,
    nproc: Nproc = None,
    nnodes: Nnodes = None,
    rdzv_endpoint: RdzvEndpoint = None,
    max_restarts: MaxRestarts = 0,
    print_sbatch: PrintSbatch = False,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-under",
            help="Exit with code 4 if a validation metric of the kept weights is lower, e.g. box_accuracy=0.85.",
            metavar="METRIC=X",
        ),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Train the tower and a head on a store.

    Needs --preset and --data; --resume defaults to those of the run.
    A preset with stages runs one stage after the other, in RUN/stages. RUN/weights are the weights of the last, and
    --resume continues in the interrupted stage. Change a setting of one stage with --set stages.NAME.KEY=VALUE.
    For a curriculum over different data, chain several runs: start each from the previous weights with --init.
    """
    import json

    overrides = [*(set_ or [])]
    if init_head is not None:
        overrides.append(f"train.init_head={json.dumps(init_head)}")
    _finetune(
        TrainingOptions(
            command="finetune",
            out=out,
            preset=preset,
            data=data,
            overrides=overrides,
            init=init,
            device=device,
            resume=resume,
            force=force,
            dry_run=dry_run,
            launch=LaunchOptions(nproc, nnodes, rdzv_endpoint, max_restarts, print_sbatch),
        ),
        fail_under=fail_under or [],
    )


def _finetune(options: TrainingOptions, *, fail_under: Sequence[str]) -> None:
    from refcli.cli.training import resolve_inputs, run_training
    from refcli.config.load import load_finetune

    inputs = resolve_inputs(options)
    settings = load_finetune(inputs.preset, inputs.overrides)
    floors: dict[str, float] = {}
    if fail_under:
        from refcli.recipes.validation import parse_floors

        floors = parse_floors(fail_under)
    run_training(options, settings, inputs, floors=floors)
