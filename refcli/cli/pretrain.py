"""`refcli pretrain`."""

from __future__ import annotations

from refcli.cli.options import Data, Device, MaxRestarts, Nnodes, Nproc, Preset, PrintSbatch, RdzvEndpoint, Set
from refcli.cli.training import DryRun, Force, Init, Out, Resume


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

    Needs --preset and --data, except with --resume, where the run's own are the default.
    Go on with `refcli finetune --init RUN/weights`.
    """
    from functools import partial

    from refcli.cli.launching import launch_if_requested, report_from_one_rank
    from refcli.cli.output import log, write_line
    from refcli.cli.training import ConsoleReporter, identify_run, resolve_request
    from refcli.config.explain import explain
    from refcli.config.load import load_pretrain

    request = resolve_request(out=out, preset=preset, data=data, set_=set_, init=init, device=device, resume=resume)
    settings = load_pretrain(request.preset, request.overrides)
    launch_if_requested(
        out=out,
        device=settings.train.device,
        nproc=nproc,
        nnodes=nnodes,
        rdzv_endpoint=rdzv_endpoint,
        max_restarts=max_restarts,
        print_sbatch=print_sbatch,
        identify=partial(identify_run, "pretrain", settings, request, out),
    )

    from refcli.recipes.pretrain import pretrain, preview

    if dry_run:
        write_line(explain(settings).rstrip("\n"))
        for line in preview(settings, store_path=request.store):
            log(line)
        return
    with report_from_one_rank(), ConsoleReporter() as talk:
        weights = pretrain(settings, store_path=request.store, out=out, resume=resume, force=force, reporter=talk)
    log(f"weights: {weights}")
    write_line(str(out))
