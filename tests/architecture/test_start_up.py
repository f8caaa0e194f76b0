"""`refcli --help` answers at once."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from refcli.cli.app import COMMANDS

HEAVY = ("torch", "timm", "torchvision", "numpy", "cv2", "PIL", "pyarrow", "sentencepiece")
IMPORTED = """
import sys
sys.argv = ["refcli", *{arguments!r}]
from refcli.cli.app import run
try:
    run()
except SystemExit as left:
    assert not left.code, left.code
sys.stderr.write(" ".join(name for name in {heavy!r} if name in sys.modules))
"""
SECONDS = 0.4
SLOW_MACHINE_FACTOR = 3.0
"""On a machine where python with typer and rich alone takes long, help may take this many times that."""
REPEATS = 5


def seconds(*arguments: str) -> float:
    """Median time of a python process."""
    times = []
    for _ in range(REPEATS):
        before = time.perf_counter()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        times.append(time.perf_counter() - before)
    return statistics.median(times)


def imported_by(*arguments: str, also: tuple[str, ...] = ()) -> str:
    code = IMPORTED.format(arguments=list(arguments), heavy=(*HEAVY, *also))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr


def test_help_and_version_import_nothing_heavy():
    assert imported_by("--help", also=("pydantic",)) == ""
    assert imported_by("--version", also=("pydantic",)) == ""


def test_the_help_of_every_command_imports_nothing_heavy():
    for name in COMMANDS:
        assert imported_by(name, "--help") == "", name


def test_help_is_there_in_less_than_half_a_second():
    baseline = seconds("-c", "import typer, rich.console")

    assert seconds("-m", "refcli", "--help") < max(SECONDS, SLOW_MACHINE_FACTOR * baseline)
