"""Several processes for one command: their environment, their exit codes, and the signals that reach them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from torch.distributed.elastic.rendezvous import RendezvousConnectionError

from refcli.engine.distributed import launching
from refcli.engine.distributed.launching import Launch, choose_num_processes, is_restart, launch
from refcli.errors import ConfigError, TrainingError

PROCESS = """
import json, os, pathlib, signal, sys, time
here, rank, starts = pathlib.Path(sys.argv[1]), int(os.environ["RANK"]), int(os.environ["REFCLI_STARTS"])
"""
"""The first lines of a process that needs nothing but python."""


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def run(tmp_path, notes, monkeypatch):
    """Launch some lines of python; they know their `rank`, the number of earlier `starts`, and `here`, a directory."""

    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # and restore what launching sets

    def launch_lines(lines: str, plan: Launch, *arguments: str) -> int:
        script = tmp_path / "process.py"
        script.write_text(PROCESS + lines)
        return launch([sys.executable, "-S", str(script), str(tmp_path), *arguments], plan, note=notes.append)

    return launch_lines


def stop_when_ready(here: Path, number: int) -> threading.Thread:
    """Send this process a signal once both of its processes are ready."""

    def stop():
        while len(list(here.glob("ready-*"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop)
    thread.start()
    return thread


def test_every_process_knows_its_rank_and_gets_the_arguments_unchanged(run, tmp_path):
    code = run('(here / str(rank)).write_text(os.environ["WORLD_SIZE"] + sys.argv[2])', Launch(3), " $5 of $$ ")

    assert code == 0
    assert [(tmp_path / str(rank)).read_text() for rank in range(3)] == ["3 $5 of $$ "] * 3


@pytest.mark.parametrize(("given", "expected"), [(None, "3"), ("5", "5")])
def test_processes_share_the_cores_evenly_unless_omp_num_threads_is_set(run, tmp_path, monkeypatch, given, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(7)))
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    run('(here / str(rank)).write_text(os.environ["OMP_NUM_THREADS"])', Launch(2))

    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == [expected] * 2


@pytest.mark.parametrize(
    ("codes", "expected"), [((0, 0), 0), ((0, 5), 5), ((75, 75), 75), ((2, 2), 2), ((130, 130), 130)]
)
def test_the_exit_code_is_passed_on_and_a_deliberate_one_never_restarts_the_processes(run, notes, codes, expected):
    assert run(f"sys.exit({codes}[rank])", Launch(2, max_restarts=3)) == expected
    assert notes == []


def test_after_a_crash_all_processes_restart_and_know_it(run, tmp_path, notes, monkeypatch):
    crash_once = """
(here / f"{rank}-{starts}-{os.environ['TORCHELASTIC_RESTART_COUNT']}").touch()
if starts == 0 and rank == 1:
    os.kill(os.getpid(), signal.SIGSEGV)
time.sleep(0.3)
"""
    assert run(crash_once, Launch(2, max_restarts=1)) == 0
    assert {path.name for path in tmp_path.glob("?-?-?")} == {"0-0-0", "1-0-0", "0-1-1", "1-1-1"}
    assert notes == ["process 1 was ended by SIGSEGV", "restarting the processes"]
    assert not is_restart()
    monkeypatch.setenv("REFCLI_STARTS", "1")
    assert is_restart()


def test_the_restarts_are_counted(run, tmp_path):
    assert run('(here / f"{rank}-{starts}").touch(); sys.exit(1)', Launch(1, max_restarts=2)) == 1
    assert len(list(tmp_path.glob("0-?"))) == 3


def test_processes_started_together_share_a_name_that_those_of_another_start_do_not_have(run, tmp_path):
    run(
        '(here / f"{rank}-{starts}").write_text(os.environ["REFCLI_ROUND"]); sys.exit(1 - starts)',
        Launch(2, max_restarts=1),
    )

    names = {path.name: path.read_text() for path in tmp_path.glob("?-?")}
    assert names["0-0"] == names["1-0"] != names["0-1"] == names["1-1"]


def test_a_process_that_is_killed_is_named(run, notes):
    assert run("if rank: os.kill(os.getpid(), signal.SIGKILL)", Launch(2)) == 128 + signal.SIGKILL
    assert notes == ["process 1 was ended by SIGKILL (was there enough memory?)"]


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_stop_signal_reaches_the_processes_which_leave_in_their_own_time(run, tmp_path, notes, which):
    save_slowly = f"""
def leave(number, frame):
    time.sleep(0.5 * rank)  # long enough for an impatient parent
    (here / f"saved-{{rank}}").touch()
    sys.exit(75)
signal.signal({int(which)}, leave)
(here / f"ready-{{rank}}").touch()
time.sleep(60)
"""
    before = signal.getsignal(which)
    stopper = stop_when_ready(tmp_path, which)
    code = run(save_slowly, Launch(2, max_restarts=3))
    stopper.join()

    assert code == 75
    assert {path.name for path in tmp_path.glob("saved-*")} == {"saved-0", "saved-1"}
    assert notes == []
    assert signal.getsignal(which) == before


def test_processes_that_cannot_save_yet_end_by_the_signal_with_the_documented_code(run, tmp_path):
    stopper = stop_when_ready(tmp_path, signal.SIGUSR1)
    code = run('(here / f"ready-{rank}").touch(); time.sleep(60)', Launch(2, max_restarts=3))
    stopper.join()

    assert code == 75


MACHINE = """
import sys
from refcli.engine.distributed.launching import Launch, launch
port, least, *command = sys.argv[1:]
print(launch(command, Launch(1, int(least), 2, f"localhost:{port}"), note=print))
"""
UNTIL_TWO = """
(here / f"{os.environ['WORLD_SIZE']}-{rank}").touch()
if os.environ["WORLD_SIZE"] == "1":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(75))
    time.sleep(100)
sys.exit(3 + rank)
"""


@pytest.fixture
def machine(tmp_path):
    """Starts a machine with one process, which exits once two such machines have met."""
    (tmp_path / "process.py").write_text(PROCESS + UNTIL_TWO)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    def start(least: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", MACHINE, str(port), str(least)]
        process = [sys.executable, "-S", str(tmp_path / "process.py"), str(tmp_path)]
        return subprocess.Popen([*command, *process], stdout=subprocess.PIPE, text=True)

    return start


def test_two_machines_meet_and_each_passes_on_the_exit_code_of_its_own_process(tmp_path, machine):
    machines = [machine(2), machine(2)]
    codes = sorted(int(it.communicate(timeout=300)[0]) for it in machines)

    assert codes == [3, 4]
    assert {path.name for path in tmp_path.glob("?-?")} == {"2-0", "2-1"}


@pytest.mark.slow
def test_a_machine_that_joins_later_makes_the_first_restart_together_with_it(tmp_path, machine):
    first = machine(1)
    while not (tmp_path / "1-0").exists():
        assert first.poll() is None
        time.sleep(0.1)
    second = machine(1)
    output = [it.communicate(timeout=300)[0].splitlines() for it in (first, second)]

    assert sorted(lines[-1] for lines in output) == ["3", "4"]
    assert output[0][0] == "restarting the processes"
    assert (tmp_path / "2-1").exists()


def test_machines_that_do_not_find_each_other_are_an_error_with_the_endpoint(monkeypatch):
    def unreachable(endpoint, **options):
        raise RendezvousConnectionError("no connection")

    monkeypatch.setattr(launching, "join_rendezvous", unreachable)

    with pytest.raises(TrainingError, match="did not find each other") as caught:
        launch(["true"], Launch(1, 2, 2, "elsewhere:29500"), note=print)
    assert "elsewhere:29500" in caught.value.where


def test_there_is_one_process_per_gpu_and_one_without(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert choose_num_processes("auto", "auto") == 4
    assert choose_num_processes("3", "cuda") == 3
    assert choose_num_processes("auto", "cpu") == 1
    assert choose_num_processes("6", "cpu") == 6
    with pytest.raises(ConfigError, match="has 4") as caught:
        choose_num_processes("5", "auto")
    assert "--nproc 4" in caught.value.hint
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert choose_num_processes("auto", "auto") == 1
    assert choose_num_processes("2", "auto") == 2
