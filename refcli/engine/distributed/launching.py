"""Launch several processes for one command, forward signals to them, and restart them after a crash."""

from __future__ import annotations

import logging
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from subprocess import Popen
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import torch
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.api import SubprocessContext
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousHandler

from refcli.engine.distributed.rendezvous import LocalRendezvous, join_rendezvous
from refcli.engine.distributed.stores import FOLDER_VARIABLE, set_collective_interface
from refcli.engine.distributed.world import ROUND_VARIABLE
from refcli.engine.stopping import EXIT_CODES, stop_signals
from refcli.errors import ConfigError, ExitCode, TrainingError

STARTS_VARIABLE = "REFCLI_STARTS"
"""Set in the launched processes: how often this machine has launched them before."""
TORCH_SIGNALS = "TORCHELASTIC_SIGNALS_TO_HANDLE"
"""The signals that torch handles while it starts processes. By default it would undo nohup's protection from SIGHUP."""
NO_SHARED_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Makes torch create a new store for every start: a machine that joins later never learns the first store's address."""
STRAGGLER_SECONDS = 20.0
"""How long the others may take to exit once a process has failed or stopped, or a machine is done."""
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Launch:
    """Which processes to launch, on which machines."""

    num_processes: int
    """On this machine."""
    min_nodes: int = 1
    max_nodes: int = 1
    endpoint: str | None = None
    """HOST:PORT of the rendezvous, HOST being one of the machines. None for a single machine."""
    max_restarts: int = 0
    """How often the processes are restarted after a crash."""
    identity: str = ""
    """The same on all machines of one run, and different for every other run, so that runs never mix."""


def is_restart() -> bool:
    """Whether this process replaces one that crashed, or that stopped because machines joined or left."""
    return any(int(os.environ.get(name, "0")) > 0 for name in ("TORCHELASTIC_RESTART_COUNT", STARTS_VARIABLE))


def is_launched() -> bool:
    """Whether `launch` started this process."""
    return STARTS_VARIABLE in os.environ


def choose_num_processes(wanted: str, device: str) -> int:
    """The number of processes on this machine; "auto" is one for every GPU, else one.

    Raises:
        ConfigError: more processes than GPUs.
    """
    num_gpus = 0 if device == "cpu" else torch.cuda.device_count()
    if wanted == "auto":
        return max(num_gpus, 1)
    if num_gpus and int(wanted) > num_gpus:
        raise ConfigError(
            f"more processes than GPUs: this machine has {num_gpus}",
            where=f"--nproc {wanted}",
            hint=f"use --nproc {num_gpus}, or --device cpu",
        )
    return int(wanted)


def launch(command: Sequence[str], plan: Launch, *, note: Callable[[str], None]) -> int:
    """Run a command in every process of the plan, until all have exited.

    SIGTERM, SIGUSR1, SIGINT and SIGHUP (unless it is ignored, as under nohup) are forwarded to the processes. Without
    OMP_NUM_THREADS they share the cores evenly. On a single machine nothing listens to the network: the processes find
    each other through files in a private folder and connect over the loopback interface.

    Args:
        command: the program and its arguments.
        note: called with messages for the user.

    Returns:
        The exit code of the first process that failed, or 0; 128 + N if signal N ended it.

    Raises:
        TrainingError: the machines did not find each other.
        UsageError: another run uses the endpoint.
    """
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with TemporaryDirectory(prefix="refcli-") as private, _torch_logs_hidden(), _process_state_restored():
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, num_cores // plan.num_processes)))
        if plan.min_nodes < plan.max_nodes:
            os.environ[NO_SHARED_STORE] = "1"
        os.environ[TORCH_SIGNALS] = ",".join(number.name for number in stop_signals())
        try:
            agent = _Agent(command, plan, _rendezvous(plan, private), private, note)
            try:
                return _exit_code(agent.run(), agent.stopped)
            finally:
                agent.spec.rdzv_handler.shutdown()
        except RendezvousError as error:
            raise TrainingError(
                f"the machines did not find each other: {error}",
                where=f"--rdzv-endpoint {plan.endpoint}",
                hint="give all of them the same endpoint: one of them, with a port that the others can reach",
            ) from error
        except SignalException as stopped:
            return int(EXIT_CODES.get(stopped.sigval, 128 + stopped.sigval))


def _rendezvous(plan: Launch, private: str) -> RendezvousHandler:
    """The rendezvous of the launchers; also sets the environment by which the processes find each other.

    Args:
        private: a folder that only this user can read.
    """
    os.environ.pop(FOLDER_VARIABLE, None)
    if plan.endpoint is None:
        os.environ[FOLDER_VARIABLE] = private
        set_collective_interface(None)
        return LocalRendezvous()
    handler, address = join_rendezvous(
        plan.endpoint, identity=plan.identity, min_nodes=plan.min_nodes, max_nodes=plan.max_nodes
    )
    set_collective_interface(address)
    return handler


class _Agent(LocalElasticAgent):
    """torchrun's agent, but processes get time to exit, and are not restarted after a deliberate exit.

    Every exit code except 0 and 1 is deliberate: a wrong setting, damaged data, a stop signal.
    """

    def __init__(
        self,
        command: Sequence[str],
        plan: Launch,
        rendezvous: RendezvousHandler,
        logs: str,
        note: Callable[[str], None],
    ) -> None:
        spec = WorkerSpec(
            role="refcli",
            local_world_size=plan.num_processes,
            entrypoint=command[0],
            args=tuple(argument.replace("$", "$$") for argument in command[1:]),  # torch expands them as templates
            rdzv_handler=rendezvous,
            max_restarts=plan.max_restarts,
            monitor_interval=POLL_SECONDS,
        )
        super().__init__(spec, DefaultLogsSpecs(log_dir=logs), exit_barrier_timeout=STRAGGLER_SECONDS)
        self.spec = spec
        self._note = note
        self._num_starts = 0
        self.stopped: signal.Signals | None = None
        self._handle_signals()

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        if self._num_starts:
            self._note("restarting the processes")
        store = worker_group.store
        assert store is not None
        if worker_group.group_rank == 0:
            store.set(ROUND_VARIABLE, str(uuid.uuid4()))
        os.environ[ROUND_VARIABLE] = store.get(ROUND_VARIABLE).decode()
        os.environ[STARTS_VARIABLE] = str(self._num_starts)
        self._num_starts += 1
        processes: dict[int, Any] = super()._start_workers(worker_group)
        self._handle_signals()  # torch has just installed its own handlers
        return processes

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        self._await_stragglers()
        result: RunResult = super()._monitor_workers(worker_group)
        self._report_killed(result)
        codes = {failure.exitcode for failure in result.failures.values()}
        is_left_for_others = ExitCode.PREEMPTED in codes and self.stopped is None
        if is_left_for_others and worker_group.spec.rdzv_handler.num_nodes_waiting() > 0:
            return RunResult(state=WorkerState.HEALTHY)  # torch then restarts together with the waiting machines
        if any(code > ExitCode.FAILED for code in codes):
            self._remaining_restarts = 0
        return result

    def _report_killed(self, result: RunResult) -> None:
        """Report the processes that a signal killed, except those that torch killed after others had failed."""
        has_failed = any(failure.exitcode > 0 for failure in result.failures.values())
        for rank, failure in result.failures.items():
            if failure.exitcode < 0 and not (has_failed and failure.exitcode == -signal.SIGTERM):
                reason = " (was there enough memory?)" if failure.exitcode == -signal.SIGKILL else ""
                self._note(f"process {rank} was ended by {failure.signal_name()}{reason}")

    def _await_stragglers(self) -> None:
        """Once a process has failed, give the others time to exit: torch would kill them at once."""
        processes = self._processes()
        if any(process.poll() for process in processes):
            latest = time.monotonic() + STRAGGLER_SECONDS
            while any(process.poll() is None for process in processes) and time.monotonic() < latest:
                time.sleep(POLL_SECONDS)

    def _handle_signals(self) -> None:
        for number in stop_signals():
            signal.signal(number, self._forward)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        """Forward a signal to the processes; if none is running, end the run."""
        self.stopped = signal.Signals(number)
        self._remaining_restarts = 0
        running = [process for process in self._processes() if process.poll() is None]
        if not running:
            raise SignalException("no process is running", self.stopped)
        for process in running:
            with suppress(ProcessLookupError):
                process.send_signal(number)

    def _processes(self) -> list[Popen[bytes]]:
        if not isinstance(self._pcontext, SubprocessContext):
            return []
        return [handler.proc for handler in self._pcontext.subprocess_handlers.values()]


def _exit_code(result: RunResult | None, stopped: signal.Signals | None) -> int:
    """The exit code of a result; None stands for a machine that was not needed."""
    if result is None or not result.failures:
        return int(ExitCode.OK)
    codes = [failure.exitcode for failure in sorted(result.failures.values(), key=lambda it: it.timestamp)]
    own = [code for code in codes if code > 0]
    if own:
        return own[0]
    return int(EXIT_CODES[stopped]) if stopped == -codes[0] else 128 - codes[0]


@contextmanager
def _torch_logs_hidden() -> Iterator[None]:
    """Hide torch's own log lines, unless LOGLEVEL asks for them."""
    logger = logging.getLogger("torch.distributed.elastic")
    before, handler = logger.propagate, logging.NullHandler()
    logger.propagate = "LOGLEVEL" in os.environ
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.propagate = before
        logger.removeHandler(handler)


@contextmanager
def _process_state_restored() -> Iterator[None]:
    """Restore signal handlers and environment afterwards."""
    handlers = {number: signal.getsignal(number) for number in (*EXIT_CODES, signal.SIGQUIT)}
    variables = dict(os.environ)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.environ.clear()
        os.environ.update(variables)
