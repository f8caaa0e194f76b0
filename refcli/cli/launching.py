"""Several training processes from the command line: start them, print a SLURM script, report from one rank only."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from refcli.cli.errors import DEBUG_VARIABLE
from refcli.errors import ExitCode, RefcliError, TrainingError, UsageError

Nproc = Annotated[
    str | None,
    typer.Option("--nproc", help="Number of training processes on this machine; auto: one per GPU.", metavar="N|auto"),
]
Nnodes = Annotated[
    str | None,
    typer.Option("--nnodes", help="Number of machines; run the same command on each.", metavar="N|MIN:MAX"),
]
RdzvEndpoint = Annotated[
    str | None,
    typer.Option(
        "--rdzv-endpoint", help="Rendezvous address of several machines: one of them and a port.", metavar="HOST:PORT"
    ),
]
MaxRestarts = Annotated[
    int,
    typer.Option("--max-restarts", min=0, help="Resume from the last checkpoint after at most this many crashes."),
]
PrintSbatch = Annotated[
    bool, typer.Option("--print-sbatch", help="Print a SLURM script for this command line; start nothing.")
]

LAUNCH_OPTIONS = {"--nproc": True, "--nnodes": True, "--rdzv-endpoint": True, "--max-restarts": True}
"""Options about the processes to start -> whether a value follows."""
START_OPTIONS = {"--resume": False, "--force": False}
"""Options about how a run begins -> whether a value follows."""
ENDPOINT = re.compile(r"[^\s:]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}")
MAX_PORT = 65535
CAUSE_SECONDS = 5.0
"""How long an unexpected error waits before it is reported: the failure of another process may have caused it."""

SBATCH = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --output={name}-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH {devices}
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
# Add what your cluster requires (partition, account, CPUs, memory). 120 seconds before the time limit the run saves,
# exits with code 75 and is queued again; the same happens after preemption and when a node fails.

cd {directory} || exit 1
command=({command})
arguments=({first})
if [ "${{SLURM_RESTART_COUNT:-0}}" -gt 0 ] && [ -f {run_yaml} ]; then
  arguments=({again})
fi
{rendezvous}srun --ntasks-per-node=1 "${{command[@]}}" "${{arguments[@]}}" {launch}
code=$?
if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""
RENDEZVOUS = """\
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000))
"""


@dataclass(frozen=True)
class LaunchOptions:
    """The options about the processes of a training command, as given."""

    nproc: str | None = None
    nnodes: str | None = None
    rdzv_endpoint: str | None = None
    max_restarts: int = 0
    print_sbatch: bool = False


def launch_if_requested(options: LaunchOptions, *, out: Path, device: str, identify: Callable[[], str] = str) -> None:
    """Launch the processes that the options ask for; return if this process should do the training.

    Args:
        out: the run directory.
        device: the setting train.device.
        identify: computes an identifier of this run that is the same on all its machines; called if there may be
            several machines.

    Raises:
        typer.Exit: the processes have ended (with their exit code), or the script is printed.
        RefcliError: the options contradict each other or do not fit this machine.
    """
    if options == LaunchOptions():
        return
    if "WORLD_SIZE" in os.environ:
        from refcli.engine.distributed.launching import is_launched

        if is_launched():
            return
        raise UsageError(
            "torchrun has started these processes already",
            where="--nproc, --nnodes, --rdzv-endpoint, --max-restarts",
            hint="leave these options out, or start refcli without torchrun",
        )
    nproc, nodes = options.nproc, parse_nodes(options.nnodes or "1")
    if nproc is not None and nproc != "auto" and not (nproc.isdecimal() and int(nproc)):
        raise UsageError(f"not a number of processes: {nproc!r}", where="--nproc", hint="--nproc 8 or --nproc auto")
    if options.print_sbatch:
        _print_sbatch(options, out=out, nodes=nodes, on_gpus=device != "cpu")
        raise typer.Exit
    endpoint = options.rdzv_endpoint
    if nodes[1] > 1 and endpoint is None:
        raise UsageError(
            "several machines need a rendezvous address",
            where="--nnodes",
            hint="--rdzv-endpoint HOST:29500 on all of them",
        )
    if endpoint is not None and not _is_endpoint(endpoint):
        raise UsageError(
            f"not an endpoint: {endpoint!r}",
            where="--rdzv-endpoint",
            hint=f"HOST:PORT, with the name or an address of one machine and a port in 1..{MAX_PORT}",
        )

    from refcli.cli.output import log
    from refcli.engine.distributed.launching import Launch, choose_num_processes, launch

    num_processes = choose_num_processes(nproc or "auto", device)
    if num_processes == 1 and endpoint is None and not options.max_restarts:
        return
    identity = identify() if endpoint is not None else ""
    plan = Launch(num_processes, *nodes, endpoint, options.max_restarts, identity)
    raise typer.Exit(launch([sys.executable, *sys.orig_argv[1:]], plan, note=log))


def _is_endpoint(text: str) -> bool:
    return bool(ENDPOINT.fullmatch(text)) and 1 <= int(text.rpartition(":")[2]) <= MAX_PORT


def _print_sbatch(options: LaunchOptions, *, out: Path, nodes: tuple[int, int], on_gpus: bool) -> None:
    if options.nproc in (None, "auto"):
        raise UsageError("the number of processes per node is missing", where="--print-sbatch", hint="add --nproc 8")

    from refcli.cli.output import write_line

    script = sbatch_script(
        sys.argv[1:],
        out=out,
        num_processes=int(options.nproc or 1),
        nodes=nodes,
        on_gpus=on_gpus,
        max_restarts=options.max_restarts,
    )
    write_line(script.rstrip("\n"))


def parse_nodes(text: str) -> tuple[int, int]:
    """The minimum and maximum number of machines, from "2" or "2:4".

    Raises:
        UsageError: it is neither.
    """
    match = re.fullmatch(r"([1-9]\d*)(?::([1-9]\d*))?", text)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if least > most:
        raise UsageError(f"not a number of machines: {text!r}", where="--nnodes", hint="--nnodes 2 or --nnodes 2:4")
    return least, most


def sbatch_script(
    arguments: Sequence[str],
    *,
    out: Path,
    num_processes: int,
    nodes: tuple[int, int],
    on_gpus: bool,
    max_restarts: int,
) -> str:
    """A SLURM script that runs a training command, and resumes it when SLURM starts the job again.

    Args:
        arguments: the arguments of refcli, with or without options about the processes to start.
        out: the run directory.
        num_processes: on every node.
        nodes: the minimum and maximum number of nodes.
    """
    first = remove_options(arguments, {**LAUNCH_OPTIONS, "--print-sbatch": False})
    again = [*remove_options(first, START_OPTIONS), "--resume"]
    launch = f"--nproc {num_processes}"
    if nodes[1] > 1:
        most = nodes[1] if nodes[0] == nodes[1] else f"{nodes[0]}:$SLURM_JOB_NUM_NODES"
        launch += f' --nnodes {most} --rdzv-endpoint "$host:$port"'
    if max_restarts:
        launch += f" --max-restarts {max_restarts}"
    return SBATCH.format(
        name=re.sub(r"[^\w.-]", "-", out.absolute().name),
        nodes=nodes[0] if nodes[0] == nodes[1] else f"{nodes[0]}-{nodes[1]}",
        devices=f"--gpus-per-node={num_processes}" if on_gpus else f"--cpus-per-task={num_processes}",
        directory=shlex.quote(str(Path.cwd())),
        command=shlex.join([sys.executable, "-m", "refcli"]),
        first=shlex.join(first),
        again=shlex.join(again),
        run_yaml=shlex.quote(str(out / "run.yaml")),
        rendezvous=RENDEZVOUS if nodes[1] > 1 else "",
        launch=launch,
    )


def remove_options(arguments: Sequence[str], options: dict[str, bool]) -> list[str]:
    """The arguments without some options; the flag of an option states whether a value follows it."""
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in options:
            if options[argument]:
                next(rest, None)
        elif argument.partition("=")[0] not in options:
            kept.append(argument)
    return kept


@contextmanager
def report_from_one_rank() -> Iterator[None]:
    """Among several processes, let only rank 0 write messages, and only the first process that fails report its error.

    The others exit with that process's exit code. In debug mode all processes write.

    Raises:
        SystemExit: another process reports its error.
        TrainingError: another process has ended.
    """
    is_alone = os.environ.get("WORLD_SIZE", "1") == "1"
    if is_alone or os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"):
        yield
        return
    stderr, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    if os.environ.get("RANK") != "0":
        os.dup2(devnull, 1)
        os.dup2(devnull, 2)
    try:
        yield
    except typer.Abort:
        raise
    except Exception as error:
        if not isinstance(error, RefcliError):
            time.sleep(CAUSE_SECONDS)

        from refcli.engine.distributed.world import claim_error_report, is_lost_connection
        from refcli.engine.stopping import OtherProcessFailedError

        if isinstance(error, OtherProcessFailedError):
            raise SystemExit(int(error.exit_code)) from error
        os.dup2(devnull, 2)  # torch writes there if the store is gone as well
        code = claim_error_report(int(getattr(error, "exit_code", ExitCode.FAILED)))
        if code is not None:
            raise SystemExit(code) from error
        os.dup2(stderr, 2)
        if is_lost_connection(error):
            raise TrainingError(
                "another process has ended", hint="was it killed, or its machine lost? continue with --resume"
            ) from error
        raise
