"""`refcli --help` appears at once: it imports next to nothing."""

from __future__ import annotations

import subprocess
import sys

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
LOADED = """
import sys
{code}
print(*sorted(name for name in sys.modules if "." not in name or name.startswith("refcli.")))
"""
MAX_OWN_MODULES = 40
"""Modules of refcli that help may import; each takes about a millisecond."""


def imported_by(*arguments: str, also: tuple[str, ...] = ()) -> str:
    code = IMPORTED.format(arguments=list(arguments), heavy=(*HEAVY, *also))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr


def loaded_by(code: str) -> set[str]:
    """Packages (and modules of refcli) that are imported after some code has run in a new process."""
    done = subprocess.run([sys.executable, "-c", LOADED.format(code=code)], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_and_version_import_nothing_heavy():
    assert imported_by("--help", also=("pydantic",)) == ""
    assert imported_by("--version", also=("pydantic",)) == ""


def test_the_help_of_every_command_imports_nothing_heavy():
    for name in COMMANDS:
        assert imported_by(name, "--help") == "", name


def test_help_imports_little_more_than_typer_and_rich():
    """So it appears at once; a limit in seconds would depend on the machine and its load."""
    baseline = loaded_by("import typer, typer.main, rich.console")
    code = "sys.argv = ['refcli', '--help']\nfrom refcli.cli.app import run\ntry: run()\nexcept SystemExit: pass"
    loaded = loaded_by(code)

    foreign = {name for name in loaded - baseline - sys.stdlib_module_names if not name.startswith(("refcli", "_"))}
    assert foreign == set()
    assert sum(name.startswith("refcli.") for name in loaded) <= MAX_OWN_MODULES
