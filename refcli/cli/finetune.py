"""`refcli finetune`."""

from __future__ import annotations

from typing import Annotated

import typer

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
    init_head: Annotated[
        str | None,
        typer.Option(
            "--init-head",
            help="Start the head from weights of a head alone, as `refcli weights convert` makes of official decoders.",
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
            help="Exit with code 4 if the kept weights validate lower; e.g. box_accuracy=0.85.",
            metavar="METRIC=X",
        ),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Train the tower and a head on a store.

    Needs --preset and --data, except with --resume, where the run's own are the default.
    A preset with stages runs them in turn, in RUN/stages; the weights of the last are RUN/weights, and --resume goes on
    in the stage that was interrupted. Change a setting of one with --set stages.NAME.KEY=VALUE.
    A curriculum over different data is a chain of runs: give each the weights of the one before with --init.
    """
    import json
    from functools import partial

    from refcli.cli.launching import launch_if_requested, report_from_one_rank
    from refcli.cli.output import log, write_line
    from refcli.cli.training import ConsoleReporter, identify_run, resolve_request
    from refcli.config.explain import explain
    from refcli.config.load import load_finetune

    if init_head is not None:
        set_ = [*(set_ or []), f"train.init_head={json.dumps(init_head)}"]
    request = resolve_request(out=out, preset=preset, data=data, set_=set_, init=init, device=device, resume=resume)
    settings = load_finetune(request.preset, request.overrides)
    floors: dict[str, float] = {}
    if fail_under:
        from refcli.recipes.validation import parse_floors

        floors = parse_floors(fail_under)
    launch_if_requested(
        out=out,
        device=settings.train.device,
        nproc=nproc,
        nnodes=nnodes,
        rdzv_endpoint=rdzv_endpoint,
        max_restarts=max_restarts,
        print_sbatch=print_sbatch,
        identify=partial(identify_run, "finetune", settings, request, out),
    )

    from refcli.recipes.finetune import finetune, preview

    if dry_run:
        write_line(explain(settings).rstrip("\n"))
        for line in preview(settings, store_path=request.store):
            log(line)
        return
    with report_from_one_rank(), ConsoleReporter() as talk:
        weights = finetune(
            settings,
            store_path=request.store,
            out=out,
            resume=resume,
            force=force,
            reporter=talk,
            floors=floors,
        )
    log(f"weights: {weights}")
    write_line(str(out))
