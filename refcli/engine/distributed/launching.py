"""Several processes for one command: start them, pass signals on, start them again after a crash."""

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
from refcli.engine.distributed.stores import FOLDER_VARIABLE, connect_over
from refcli.engine.distributed.world import ROUND_VARIABLE
from refcli.engine.stopping import EXIT_CODES, stop_signals
from refcli.errors import ConfigError, ExitCode, TrainingError

STARTS_VARIABLE = "REFCLI_STARTS"
"""Set in the processes that are started here: how often this machine started them before."""
TORCH_SIGNALS = "TORCHELASTIC_SIGNALS_TO_HANDLE"
"""Which signals torch handles while it starts processes. It would give SIGHUP back its effect under nohup."""
NO_SHARED_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Has torch make a new store for every start: a machine that comes later never learns where the first one is."""
STRAGGLER_SECONDS = 20.0
"""How long the others may take to leave once one process has failed or stopped, or one machine is done."""
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Launch:
    """Which processes to start, on which machines."""

    num_processes: int
    """On this machine."""
    min_nodes: int = 1
    max_nodes: int = 1
    endpoint: str | None = None
    """HOST:PORT where the machines meet, HOST being one of them. None: this machine is alone."""
    max_restarts: int = 0
    """How often the processes are started again after a crash."""
    identity: str = ""
    """What the machines of one run have in common, and no other run has: they meet no other."""


def is_restart() -> bool:
    """Whether this process takes the place of one that crashed, or that stopped because machines came or went."""
    return any(int(os.environ.get(name, "0")) > 0 for name in ("TORCHELASTIC_RESTART_COUNT", STARTS_VARIABLE))


def is_launched() -> bool:
    """Whether this process is one that `launch` started."""
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
    """Run a command in every process of the plan, until all have left.

    SIGTERM, SIGUSR1, SIGINT and SIGHUP (unless it is ignored, as under nohup) are passed on to the processes. Without
    OMP_NUM_THREADS they share the cores evenly. On one machine nothing listens to the network: the processes find each
    other through files in a private folder and connect over the loopback interface.

    Args:
        command: the program and its arguments.
        note: is called with what the user should know.

    Returns:
        The exit code of the processes: that of the first that failed, if any did; 128 + N if it was ended by signal N.

    Raises:
        TrainingError: the machines did not find each other.
        UsageError: another run meets at the endpoint.
    """
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with TemporaryDirectory(prefix="refcli-") as private, _quiet_machinery(), _all_put_back():
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, num_cores // plan.num_processes)))
        if plan.min_nodes < plan.max_nodes:
            os.environ[NO_SHARED_STORE] = "1"
        os.environ[TORCH_SIGNALS] = ",".join(number.name for number in stop_signals())
        try:
            agent = _Agent(command, plan, _meet(plan, private), private, note)
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


def _meet(plan: Launch, private: str) -> RendezvousHandler:
    """The launchers' meeting; the environment then tells the processes how to find each other.

    Args:
        private: a folder that only this user can look into.
    """
    os.environ.pop(FOLDER_VARIABLE, None)
    if plan.endpoint is None:
        os.environ[FOLDER_VARIABLE] = private
        connect_over(None)
        return LocalRendezvous()
    meeting, address = join_rendezvous(
        plan.endpoint, identity=plan.identity, min_nodes=plan.min_nodes, max_nodes=plan.max_nodes
    )
    connect_over(address)
    return meeting


class _Agent(LocalElasticAgent):
    """torchrun's agent, but processes leave in their own time, and are not started again after an exit that was meant.

    Every exit code except 1 is meant: a wrong setting, damaged data, a stop signal.
    """

    def __init__(
        self,
        command: Sequence[str],
        plan: Launch,
        meeting: RendezvousHandler,
        logs: str,
        note: Callable[[str], None],
    ) -> None:
        spec = WorkerSpec(
            role="refcli",
            local_world_size=plan.num_processes,
            entrypoint=command[0],
            args=tuple(argument.replace("$", "$$") for argument in command[1:]),  # they are taken for templates
            rdzv_handler=meeting,
            max_restarts=plan.max_restarts,
            monitor_interval=POLL_SECONDS,
        )
        super().__init__(spec, DefaultLogsSpecs(log_dir=logs), exit_barrier_timeout=STRAGGLER_SECONDS)
        self.spec = spec
        self._note = note
        self._num_starts = 0
        self.stopped: signal.Signals | None = None
        self._take_signals()

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        if self._num_starts:
            self._note("starting the processes again")
        store = worker_group.store
        assert store is not None
        if worker_group.group_rank == 0:
            store.set(ROUND_VARIABLE, str(uuid.uuid4()))
        os.environ[ROUND_VARIABLE] = store.get(ROUND_VARIABLE).decode()
        os.environ[STARTS_VARIABLE] = str(self._num_starts)
        self._num_starts += 1
        processes: dict[int, Any] = super()._start_workers(worker_group)
        self._take_signals()  # torch has just put in handlers of its own
        return processes

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        self._let_stragglers_leave()
        result: RunResult = super()._monitor_workers(worker_group)
        self._note_deaths(result)
        codes = {failure.exitcode for failure in result.failures.values()}
        is_left_for_others = ExitCode.PREEMPTED in codes and self.stopped is None
        if is_left_for_others and worker_group.spec.rdzv_handler.num_nodes_waiting() > 0:
            return RunResult(state=WorkerState.HEALTHY)  # torch now starts again together with the machines that wait
        if any(code > ExitCode.FAILED for code in codes):
            self._remaining_restarts = 0
        return result

    def _note_deaths(self, result: RunResult) -> None:
        """Name the processes that were ended by a signal; not those that torch ended when others had failed."""
        has_failed = any(failure.exitcode > 0 for failure in result.failures.values())
        for rank, failure in result.failures.items():
            if failure.exitcode < 0 and not (has_failed and failure.exitcode == -signal.SIGTERM):
                reason = " (was there enough memory?)" if failure.exitcode == -signal.SIGKILL else ""
                self._note(f"process {rank} was ended by {failure.signal_name()}{reason}")

    def _let_stragglers_leave(self) -> None:
        """Once a process has failed, give the others time: torch would end them at once, in the midst of a word."""
        processes = self._processes()
        if any(process.poll() for process in processes):
            latest = time.monotonic() + STRAGGLER_SECONDS
            while any(process.poll() is None for process in processes) and time.monotonic() < latest:
                time.sleep(POLL_SECONDS)

    def _take_signals(self) -> None:
        for number in stop_signals():
            signal.signal(number, self._pass_on)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """Hand a signal to the processes; where none is running, end the run."""
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
    """The exit code that a result comes to; None is a machine that was not needed."""
    if result is None or not result.failures:
        return int(ExitCode.OK)
    codes = [failure.exitcode for failure in sorted(result.failures.values(), key=lambda it: it.timestamp)]
    own = [code for code in codes if code > 0]
    if own:
        return own[0]
    return int(EXIT_CODES[stopped]) if stopped == -codes[0] else 128 - codes[0]


@contextmanager
def _quiet_machinery() -> Iterator[None]:
    """Keep torch's own log lines back, unless LOGLEVEL asks for them."""
    logger = logging.getLogger("torch.distributed.elastic")
    before, silence = logger.propagate, logging.NullHandler()
    logger.propagate = "LOGLEVEL" in os.environ
    logger.addHandler(silence)
    try:
        yield
    finally:
        logger.propagate = before
        logger.removeHandler(silence)


@contextmanager
def _all_put_back() -> Iterator[None]:
    """Leave signal handlers and environment as they were."""
    handlers = {number: signal.getsignal(number) for number in (*EXIT_CODES, signal.SIGQUIT)}
    variables = dict(os.environ)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.environ.clear()
        os.environ.update(variables)
