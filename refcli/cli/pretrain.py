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
    from refcli.cli.launching import report_from_one_rank
    from refcli.cli.output import log, write_line
    from refcli.cli.training import ConsoleReporter, launch_training, resolve_inputs
    from refcli.config.explain import explain
    from refcli.config.load import load_pretrain

    inputs = resolve_inputs(options)
    settings = load_pretrain(inputs.preset, inputs.overrides)
    launch_training(options, settings, inputs)

    from refcli.recipes.pretrain import pretrain, preview

    if options.dry_run:
        write_line(explain(settings).rstrip("\n"))
        for line in preview(settings, store_path=inputs.store):
            log(line)
        return
    with report_from_one_rank(), ConsoleReporter() as reporter:
        weights = pretrain(
            settings,
            store_path=inputs.store,
            out=options.out,
            resume=options.resume,
            force=options.force,
            reporter=reporter,
        )
    log(f"weights: {weights}")
    write_line(str(options.out))
