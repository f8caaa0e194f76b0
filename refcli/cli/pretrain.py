"""`refcli pretrain`."""

from __future__ import annotations

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
    device: Device = None,
    nproc: Nproc = None,
    nnodes: Nnodes = None,
    rdzv_endpoint: RdzvEndpoint = None,
    max_restarts: MaxRestarts = 0,
    print_sbatch: PrintSbatch = False,
    dry_run: DryRun = False,
) -> None:
    """Pre-train the tower by Mask Referring Modelling (MRefM).

    Needs --preset and --data; --resume defaults to those of the run.
    Continue with `refcli finetune --init RUN/weights`.
    """
    _pretrain(
        TrainingOptions(
            command="pretrain",
            out=out,
            preset=preset,
            data=data,
            overrides=set_ or [],
            init=init,
            device=device,
            resume=resume,
            force=force,
            dry_run=dry_run,
            launch=LaunchOptions(nproc, nnodes, rdzv_endpoint, max_restarts, print_sbatch),
        )
    )


def _pretrain(options: TrainingOptions) -> None:
    from refcli.cli.training import resolve_inputs, run_training
    from refcli.config.load import load_pretrain

    inputs = resolve_inputs(options)
    run_training(options, load_pretrain(inputs.preset, inputs.overrides), inputs)
