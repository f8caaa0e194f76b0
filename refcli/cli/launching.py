"""Several processes from the command line: start them, print the SLURM script that would, let one of them talk."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer

from refcli.cli.errors import DEBUG_VARIABLE
from refcli.errors import ExitCode, RefcliError, TrainingError, UsageError

LAUNCH_OPTIONS = {"--nproc": True, "--nnodes": True, "--rdzv-endpoint": True, "--max-restarts": True}
"""What says how to start processes; whether a value follows."""
START_OPTIONS = {"--resume": False, "--force": False}
"""What says how to start a run."""
ENDPOINT = re.compile(r"[^\s:]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}")
LARGEST_PORT = 65535
SECONDS_FOR_THE_CAUSE = 5.0
"""How long an unexpected error waits to be told: another process may have failed first and caused it."""

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
# Add what your cluster wants (partition, account, CPUs, memory). 120 seconds before the time is up the run saves,
# leaves with exit code 75 and is queued again; so it is after preemption and when a node fails.

cd {directory} || exit 1
command=({command})
arguments=({first})
if [ "${{SLURM_RESTART_COUNT:-0}}" -gt 0 ] && [ -f {run_yaml} ]; then
  arguments=({again})
fi
{meeting}srun --ntasks-per-node=1 "${{command[@]}}" "${{arguments[@]}}" {launch}
code=$?
if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""
MEETING = """\
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000))
"""


def launch_if_requested(
    *,
    out: Path,
    device: str,
    nproc: str | None,
    nnodes: str | None,
    rdzv_endpoint: str | None,
    max_restarts: int,
    print_sbatch: bool,
    identify: Callable[[], str] = str,
) -> None:
    """Give a training command to the processes that were asked for; return where this process shall train itself.

    Args:
        out: the run directory.
        device: the setting train.device.
        identify: what the machines of this run have in common and no other run has; asked where machines meet.

    Raises:
        typer.Exit: the processes have left (with their exit code), or the script is printed.
        RefcliError: the options do not fit together or this machine.
    """
    if not (nproc or nnodes or rdzv_endpoint or max_restarts or print_sbatch):
        return
    if "WORLD_SIZE" in os.environ:
        from refcli.engine.distributed.launching import is_launched

        if is_launched():
            return
        raise UsageError(
            "these processes are started by torchrun already",
            where="--nproc, --nnodes, --rdzv-endpoint, --max-restarts",
            hint="leave these options out, or start refcli without torchrun",
        )
    if nproc is not None and nproc != "auto" and not (nproc.isdecimal() and int(nproc)):
        raise UsageError(f"not a number of processes: {nproc!r}", where="--nproc", hint="--nproc 8 or --nproc auto")
    nodes = parse_nodes(nnodes or "1")
    if print_sbatch:
        if nproc in (None, "auto"):
            raise UsageError("how many processes per node?", where="--print-sbatch", hint="add --nproc 8")
        from refcli.cli.output import write_line

        write_line(
            sbatch_script(
                sys.argv[1:], out=out, num_processes=int(nproc or 1), nodes=nodes, on_gpus=device != "cpu",
                max_restarts=max_restarts,
            ).rstrip("\n")
        )  # fmt: skip
        raise typer.Exit
    if nodes[1] > 1 and rdzv_endpoint is None:
        raise UsageError(
            "several machines need a place to meet", where="--nnodes", hint="--rdzv-endpoint HOST:29500 on all of them"
        )
    if rdzv_endpoint is not None and not _is_endpoint(rdzv_endpoint):
        raise UsageError(
            f"not an endpoint: {rdzv_endpoint!r}",
            where="--rdzv-endpoint",
            hint=f"HOST:PORT, with the name or an address of one machine and a port in 1..{LARGEST_PORT}",
        )

    from refcli.cli.output import log
    from refcli.engine.distributed.launching import Launch, choose_num_processes, launch

    num_processes = choose_num_processes(nproc or "auto", device)
    if num_processes == 1 and rdzv_endpoint is None and not max_restarts:
        return
    identity = identify() if rdzv_endpoint is not None else ""
    plan = Launch(num_processes, *nodes, rdzv_endpoint, max_restarts, identity)
    raise typer.Exit(launch([sys.executable, *sys.orig_argv[1:]], plan, note=log))


def _is_endpoint(text: str) -> bool:
    return bool(ENDPOINT.fullmatch(text)) and 1 <= int(text.rpartition(":")[2]) <= LARGEST_PORT


def parse_nodes(text: str) -> tuple[int, int]:
    """The least and the largest number of machines, of "2" or "2:4".

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
    """The SLURM script that runs a training command, and goes on with it when SLURM starts the job again.

    Args:
        arguments: of refcli, with or without options that say how to start processes.
        out: the run directory.
        num_processes: on every node.
        nodes: the least and the largest number of them.
    """
    first = without(arguments, {**LAUNCH_OPTIONS, "--print-sbatch": False})
    again = [*without(first, START_OPTIONS), "--resume"]
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
        meeting=MEETING if nodes[1] > 1 else "",
        launch=launch,
    )


def without(arguments: Sequence[str], options: dict[str, bool]) -> list[str]:
    """The arguments that are left when some options are taken out; the flag says whether a value follows the option."""
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
    """Among several processes let only the main one be heard; an error is told once, by the first that has it.

    The others leave with the exit code of the one that tells. In debug mode all talk.

    Raises:
        SystemExit: another process tells its error.
        TrainingError: another process is gone.
    """
    is_alone = os.environ.get("WORLD_SIZE", "1") == "1"
    if is_alone or os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"):
        yield
        return
    voice, silence = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    if os.environ.get("RANK") != "0":
        os.dup2(silence, 1)
        os.dup2(silence, 2)
    try:
        yield
    except typer.Abort:
        raise
    except Exception as error:
        if not isinstance(error, RefcliError):
            time.sleep(SECONDS_FOR_THE_CAUSE)

        from refcli.engine.distributed.world import claim_error_report, is_lost_connection
        from refcli.engine.stopping import OtherProcessFailedError

        if isinstance(error, OtherProcessFailedError):
            raise SystemExit(int(error.exit_code)) from error
        os.dup2(silence, 2)  # torch's complaints where the store is gone as well
        code = claim_error_report(int(getattr(error, "exit_code", ExitCode.FAILED)))
        if code is not None:
            raise SystemExit(code) from error
        os.dup2(voice, 2)
        if is_lost_connection(error):
            raise TrainingError(
                "another process is gone", hint="was it killed, or its machine lost? go on with --resume"
            ) from error
        raise
