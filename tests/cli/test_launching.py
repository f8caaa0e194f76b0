"""Training in several processes from the command line, and the SLURM script for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from refcli.cli.launching import (
    LaunchOptions,
    launch_if_requested,
    parse_nodes,
    remove_options,
    report_from_one_rank,
    sbatch_script,
)
from refcli.data.sources.synthetic.write import write_synthetic
from refcli.errors import UsageError

ARGUMENTS = [
    "finetune",
    "--preset",
    "my preset.yaml",
    "--nproc=8",
    "--set",
    'data.train=["a:$b"]',
    "--nnodes",
    "2",
    "--force",
]
KEPT = ["finetune", "--preset", "my preset.yaml", "--set", 'data.train=["a:$b"]', "--force"]
SRUN = """#!{python}
import json, os, pathlib, sys
pathlib.Path("srun.json").write_text(json.dumps(sys.argv[1:]))
sys.exit(int(os.environ["SRUN_EXIT"]))
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then printf 'node7\\nnode8\\n'; else echo "$@" > requeued; fi
"""


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
PATIENCE = 120


def ask(**changed) -> None:
    launch_if_requested(LaunchOptions(**changed), out=Path("run"), device="cpu")


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Runs a SLURM script in `tmp_path` with an srun that only notes its arguments; returns (exit code, arguments)."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN.format(python=sys.executable)), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)

    def run(script: str, **slurm: str) -> tuple[int, list[str]]:
        (tmp_path / "job.sh").write_text(script)
        subprocess.run(["bash", "-n", "job.sh"], check=True)
        environment = {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "123456", **slurm}
        environment = {"SLURM_JOB_NODELIST": "node[7-8]", "SRUN_EXIT": "0", **environment}
        done = subprocess.run(["bash", str(tmp_path / "job.sh")], cwd="/", env=environment)
        return done.returncode, json.loads((tmp_path / "srun.json").read_text())

    return run


def script_for(out: Path, **changed) -> str:
    options = {"num_processes": 8, "nodes": (2, 2), "on_gpus": True, "max_restarts": 0}
    return sbatch_script(ARGUMENTS, out=out, **{**options, **changed})


def test_the_script_runs_the_same_command_line_on_every_node(cluster, tmp_path):
    code, arguments = cluster(script_for(tmp_path / "my run"))

    command = [sys.executable, "-m", "refcli", *KEPT]
    launch = ["--nproc", "8", "--nnodes", "2", "--rdzv-endpoint", "node7:23456"]
    assert (code, arguments) == (0, ["--ntasks-per-node=1", *command, *launch])
    assert not (tmp_path / "requeued").exists()


def test_a_requeued_job_resumes_the_run_of_the_first_one(cluster, tmp_path):
    script = script_for(tmp_path / "my run")
    _, nothing_began = cluster(script, SLURM_RESTART_COUNT="1")
    (tmp_path / "my run").mkdir()
    (tmp_path / "my run" / "run.yaml").touch()
    _, began = cluster(script, SLURM_RESTART_COUNT="1")

    assert "--force" in nothing_began and "--resume" not in nothing_began
    assert "--resume" in began and "--force" not in began


def test_a_preempted_job_is_queued_again_and_a_failed_one_is_not(cluster, tmp_path):
    assert cluster(script_for(tmp_path / "run"), SRUN_EXIT="1")[0] == 1
    assert not (tmp_path / "requeued").exists()
    assert cluster(script_for(tmp_path / "run"), SRUN_EXIT="75")[0] == 75
    assert (tmp_path / "requeued").read_text() == "requeue 123456\n"


def test_elastic_jobs_take_as_many_nodes_as_there_are(cluster, tmp_path):
    script = script_for(tmp_path / "run", nodes=(2, 4), max_restarts=3)
    _, arguments = cluster(script, SLURM_JOB_NUM_NODES="3")

    assert "#SBATCH --nodes=2-4\n" in script
    assert arguments[arguments.index("--nnodes") + 1] == "2:3"
    assert arguments[-2:] == ["--max-restarts", "3"]


def test_the_directives_describe_the_job_to_slurm(tmp_path):
    directives = {
        line.removeprefix("#SBATCH ") for line in script_for(tmp_path / "my run").splitlines() if "#SBATCH" in line
    }

    assert directives >= {"--job-name=my-run", "--nodes=2", "--gpus-per-node=8", "--signal=USR1@120", "--requeue"}
    alone = script_for(tmp_path / "my run", nodes=(1, 1), on_gpus=False)
    assert "--gpus" not in alone
    assert "--cpus-per-task=8" in alone
    assert "--rdzv-endpoint" not in alone


def test_options_are_taken_out_with_their_values():
    assert remove_options(ARGUMENTS, {"--nproc": True, "--nnodes": True}) == KEPT
    assert remove_options(["--nnodes"], {"--nnodes": True}) == []


@pytest.mark.parametrize(("text", "nodes"), [("1", (1, 1)), ("3", (3, 3)), ("2:16", (2, 16))])
def test_the_number_of_machines_is_one_number_or_two(text, nodes):
    assert parse_nodes(text) == nodes


@pytest.mark.parametrize("text", ["0", "4:2", "2:", "many", "1:2:3", "-1"])
def test_another_number_of_machines_is_refused(text):
    with pytest.raises(UsageError, match="not a number of machines"):
        parse_nodes(text)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"nproc": "some"}, "not a number of processes"),
        ({"nproc": "0"}, "not a number of processes"),
        ({"nnodes": "2"}, "need a rendezvous address"),
        ({"nnodes": "2", "rdzv_endpoint": "nowhere"}, "not an endpoint"),
        ({"print_sbatch": True}, "number of processes per node is missing"),
    ],
)
def test_impossible_launches_are_refused(changed, message):
    with pytest.raises(UsageError, match=message):
        ask(**changed)


def test_one_process_trains_by_itself():
    ask()
    ask(nproc="1")
    ask(nproc="auto")


def test_processes_of_torchrun_start_no_others(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    ask()
    with pytest.raises(UsageError, match="torchrun"):
        ask(nproc="2")
    monkeypatch.setenv("REFCLI_STARTS", "0")
    ask(nproc="2")


def test_the_script_is_printed_and_nothing_started(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["refcli", *ARGUMENTS, "--print-sbatch"])
    with pytest.raises(typer.Exit):
        ask(nproc="8", print_sbatch=True)

    assert capsys.readouterr().out.startswith("#!/bin/bash\n#SBATCH --job-name=run\n")
    assert not Path("run").exists()


def test_a_single_process_passes_on_every_error_unchanged():
    with pytest.raises(KeyError), report_from_one_rank():
        raise KeyError


@pytest.fixture
def store(tmp_path) -> Path:
    write_synthetic(tmp_path / "store", size=6, seed=3, splits=["train"])
    return tmp_path / "store"


@pytest.fixture
def training(store):
    """Starts processes that train a few small steps on the store, and leaves none behind."""
    changes = ["data.workers=0", "data.validation=[]", "train.validate_every=null", "train.batch_size=4"]
    changes += ["train.steps=4", "train.log_every=1", "train.save_every=5"]
    settings = [part for change in changes for part in ("--set", change)]
    refcli = ["-m", "refcli", "finetune", "--preset", "synthetic_tiny", "--device", "cpu", "--data", str(store)]
    started: list[subprocess.Popen[str]] = []

    def start(run: Path, *arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *launcher, *refcli, "--out", str(run), *settings, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.terminate()
        process.wait(timeout=PATIENCE)


def wait_for(event: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    latest = time.monotonic() + PATIENCE
    while not event():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < latest
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("launcher", "arguments"),
    [
        pytest.param((), ("--nproc", "2"), id="refcli"),
        pytest.param(TORCHRUN, (), id="torchrun", marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_and_only_rank_0_reports(tmp_path, training, launcher, arguments):
    run = tmp_path / "run"
    process = training(run, *arguments, launcher=launcher)
    output, stderr = process.communicate(timeout=PATIENCE)

    assert (process.returncode, output) == (0, f"{run}\n"), stderr
    assert stderr.count("weights: ") == 1
    assert [line for line in stderr.splitlines() if "loss" in line] == [
        line.partition(" ")[2] for line in (run / "log.txt").read_text().splitlines() if "loss" in line
    ]
    assert json.loads((run / "env.json").read_text())["processes"] == 2
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.slow
def test_an_error_of_both_processes_is_reported_once(tmp_path, store, training):
    for image in (store / "synthetic").rglob("*.jpg"):
        image.write_bytes(b"not an image")
    process = training(tmp_path / "run", "--nproc", "2")
    output, stderr = process.communicate(timeout=PATIENCE)

    assert (process.returncode, output) == (1, "")
    assert stderr.count("error:") == stderr.count(".jpg") == 1, stderr
    assert "Traceback" not in stderr


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the processes in Linux's /proc")
@pytest.mark.slow
def test_processes_resume_from_the_last_checkpoint_after_a_crash_and_save_when_stopped(tmp_path, training):
    run = tmp_path / "run"
    process = training(run, "--force", "--set", "train.steps=1000000", "--nproc", "2", "--max-restarts", "1")
    wait_for(lambda: bool(list(run.glob("checkpoints/step-*"))), process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    wait_for(lambda: (run / "log.txt").read_text().count("started after step") == 2, process)
    restarted = int((run / "log.txt").read_text().rpartition("started after step ")[2].split()[0])
    lines = len((run / "metrics.jsonl").read_text().splitlines())
    wait_for(lambda: len((run / "metrics.jsonl").read_text().splitlines()) > lines + 1, process)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=PATIENCE)

    assert process.returncode == 75, stderr
    assert "restarting the processes" in stderr
    assert stderr.count("after step") == 2, "one line for resuming, one for stopping"
    assert "Traceback" not in stderr
    stopped = int(max(path.name for path in run.glob("checkpoints/step-*")).removeprefix("step-"))
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert restarted > 0 and restarted % 5 == 0
    assert steps == list(range(1, stopped + 1))
