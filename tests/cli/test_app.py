"""The command line: its output, its messages and its exit codes."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import refcli
from refcli.cli import app as cli_app
from refcli.cli.errors import report_error
from refcli.cli.output import log, printable, write_line
from refcli.engine.stopping import StoppedError
from refcli.errors import ConfigError, DataError, DownloadError, GateError, RefcliError, WeightsError


def refcli_run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run the real command in a process of its own, in 100 columns."""
    return subprocess.run(
        [sys.executable, "-m", "refcli", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1", **environment},
    )


@pytest.fixture
def run_with(monkeypatch, capsys):
    """Run `run()` with a command body that raises; returns (exit code, stderr)."""

    def run(error: BaseException) -> tuple[int, str]:
        def application(**options):
            raise error

        monkeypatch.setattr(cli_app, "app", application)
        with pytest.raises(SystemExit) as left:
            cli_app.run()
        return int(left.value.code), capsys.readouterr().err

    return run


def test_version_is_data_on_stdout():
    done = refcli_run("--version")

    assert (done.returncode, done.stdout, done.stderr) == (0, f"refcli {refcli.__version__}\n", "")


def test_help_lists_every_command_with_one_line():
    done = refcli_run("--help")

    assert done.returncode == 0
    for name in (*cli_app.COMMANDS, "presets"):
        assert re.search(rf"^  {name} +\w", done.stdout, re.MULTILINE), name


@pytest.mark.parametrize("command", [*cli_app.COMMANDS, "presets"])
def test_every_command_has_help(command):
    done = refcli_run(command, "--help")

    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: refcli {command}")


def test_an_unknown_command_exits_with_2_and_the_nearest_name():
    done = refcli_run("fintune")

    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean 'finetune'?" in done.stderr


def test_an_unknown_option_exits_with_2_and_the_nearest_option():
    done = refcli_run("finetune", "--presett", "x")

    assert (done.returncode, done.stdout) == (2, "")
    assert "--preset" in done.stderr.split("--presett", 1)[1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--preset", "synthetic_smal", "--data", "S"], "did you mean 'synthetic_small'?"),
        (["--preset", "synthetic_small", "--data", "S", "--set", "train.stepz=1"], "did you mean 'steps'?"),
        (["--preset", "synthetic_small"], "--data"),
        (["--data", "S"], "refcli presets list"),
    ],
)
def test_a_wrong_setting_exits_with_2_and_a_hint(tmp_path, arguments, expected):
    done = refcli_run("finetune", "--out", str(tmp_path / "run"), *arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert expected in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RefcliError("no"), 1),
        (ConfigError("no"), 2),
        (GateError("no"), 4),
        (DataError("no"), 5),
        (WeightsError("no"), 5),
        (DownloadError("no"), 1),
        (StoppedError(3, signal.SIGTERM), 75),
        (StoppedError(3, signal.SIGINT), 130),
        (KeyboardInterrupt(), 130),
        (ValueError("bug"), 1),
    ],
)
def test_every_outcome_has_its_exit_code(run_with, error, code):
    assert run_with(error)[0] == code


def test_an_error_of_the_operating_system_is_not_reported_as_a_bug(run_with):
    code, message = run_with(PermissionError(errno.EACCES, "Permission denied", "/sys/s"))

    assert (code, message.splitlines()[:2]) == (
        1,
        ["error: the operating system reports: Permission denied", "where: /sys/s"],
    )


def test_an_error_states_message_place_and_hint_literally(run_with):
    _, message = run_with(DataError("the [bold]file[/bold] is cut", where="a[0].jpg", hint="fetch it again"))

    assert message == "error: the [bold]file[/bold] is cut\nwhere: a[0].jpg\nhint: fetch it again\n"


def test_no_text_of_a_file_controls_the_terminal(run_with, monkeypatch, capsys):
    hostile = "\x1b[2Ja\x07\u202eb\x85\r"
    log(f"first {hostile}\nsecond")
    logged = capsys.readouterr().err
    _, reported = run_with(DataError(hostile, where=hostile, hint=f"{hostile}\nlast"))
    monkeypatch.setenv("REFCLI_DEBUG", "1")
    _, traced = run_with(ValueError(hostile))

    escaped = "\\x1b[2Ja\\x07\\u202eb\\x85\\r"
    assert logged == f"first {escaped}\nsecond\n"
    assert reported == f"error: {escaped}\nwhere: {escaped}\nhint: {escaped}\nlast\n"
    assert "Traceback" in traced
    assert all(line.isprintable() for line in traced.split("\n"))
    assert printable(f"é 日本 {hostile}\n") == f"é 日本 {escaped}\\n"


def test_data_is_written_as_it_is(capsys):
    write_line('{"name": "a\x1bb"}')

    assert capsys.readouterr().out == '{"name": "a\x1bb"}\n'


def test_a_bug_is_one_line_and_a_hint_unless_debugging(run_with, monkeypatch):
    _, short = run_with(ValueError("oh"))
    monkeypatch.setenv("REFCLI_DEBUG", "1")
    _, long = run_with(ValueError("oh"))

    assert "ValueError: oh" in short
    assert "--debug" in short
    assert "Traceback" not in short
    assert "Traceback" in long


def test_reporting_an_error_returns_its_code(capsys):
    assert report_error(ConfigError("no")) == 2


def test_the_debug_option_shows_the_traceback_of_a_user_mistake_too(tmp_path):
    done = refcli_run("--debug", "finetune", "--out", str(tmp_path / "r"), "--preset", "nothing.yaml", "--data", "S")

    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_a_closed_pipe_ends_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "refcli", "presets", "show", "synthetic_small"], stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)

    assert (done.returncode, done.stderr) == (0, b"")


def test_presets_list_prints_one_line_each_with_its_purpose():
    done = refcli_run("presets", "list")

    assert re.search(r"^finetune/synthetic_small {2,}\S", done.stdout, re.MULTILINE)


def test_presets_copy_writes_the_file_once(tmp_path: Path):
    target = tmp_path / "mine.yaml"
    shown = refcli_run("presets", "show", "synthetic_small")
    copied = refcli_run("presets", "copy", "synthetic_small", str(target))
    again = refcli_run("presets", "copy", "synthetic_small", str(target))

    assert (copied.returncode, copied.stdout) == (0, "")
    assert target.read_text() == shown.stdout
    assert again.returncode == 2


def test_presets_show_resolved_has_every_setting():
    done = refcli_run("presets", "show", "--resolved", "finetune/synthetic_small")

    assert done.returncode == 0
    assert "checkpoint_activations: false" in done.stdout


@pytest.mark.parametrize("group", [[], ["weights"], ["presets"]])
def test_the_summary_of_every_command_is_one_complete_sentence(group):
    done = refcli_run(*group, "--help")

    summaries = done.stdout.partition("Commands:\n")[2].splitlines()
    assert len(summaries) > 3
    assert [line for line in summaries if not line.endswith(".") or line.endswith("...")] == []
