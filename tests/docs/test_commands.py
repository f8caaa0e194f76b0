"""Every command block of the documentation runs, and every refcli command in it is valid.

The blocks of a page share one folder and run in order; `refcli` runs in this process. Fast tests shorten training to a
few steps and generated data sets to a few images; `-m slow` runs everything as it is printed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documentation import NAMES, ROOT, Block, blocks_of, pipeline_of, statements_of
from PIL import Image, ImageDraw

RUN_LANGUAGES = ("bash", "python")
SHOWN_LANGUAGES = ("json", "mermaid", "text", "yaml")
INDEPENDENT_PAGES = {"docs/library.md"}
"""Each of their blocks runs in an empty folder of its own."""
SHORT_STEPS = 4
SHORT_SIZE = 40
NOT_RUN_PROGRAMS = {"pip"}
"""`.ci/run` and the workflows install; the rest of such a line is run."""

with_blocks = pytest.mark.parametrize(
    "name", [name for name in NAMES if any(block.language in RUN_LANGUAGES for block in blocks_of(ROOT / name))]
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with the photographs that the pages ask about, as the current one."""
    for index, name in enumerate(("photo.jpg", "photos/a.jpg", "photos/b.jpg", "more/c.png")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        image = Image.new("RGB", (120, 130), "white")
        ImageDraw.Draw(image).ellipse((20 + index, 30, 70, 80), fill="red")
        image.save(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("REFCLI_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.fixture
def run_shell(tmp_path_factory):
    """Run a statement in bash, where `refcli` is this checkout's."""
    programs = tmp_path_factory.mktemp("bin")
    wrapper = programs / "refcli"
    wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m refcli "$@"\n')
    wrapper.chmod(0o755)
    environment = os.environ | {
        "PATH": os.pathsep.join([str(programs), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }

    def call(statement: str, *, where: str) -> None:
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", statement],
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert not done.returncode, f"{where}: {statement}\n{done.stderr}"

    return call


def shortened(arguments: list[str]) -> list[str]:
    """The same command with few steps and few images."""
    arguments = list(arguments)
    is_new_run = arguments[0] in ("finetune", "pretrain") and "--resume" not in arguments
    if "--size" in arguments:
        place = arguments.index("--size") + 1
        arguments[place] = str(min(int(arguments[place]), SHORT_SIZE))
    return [*arguments, "--set", f"train.steps={SHORT_STEPS}"] if is_new_run else arguments


def run_block(block: Block, refcli, run_shell, *, is_short: bool) -> None:
    if block.language == "python":
        code = compile(block.text, str(block), "exec")
        exec(code, {"__name__": "__main__"})
        return
    for statement in statements_of(block.text):
        pipeline = pipeline_of(statement)
        programs = {command.words[0] for command in pipeline}
        if programs & NOT_RUN_PROGRAMS or not all(map(is_installed, programs)):
            continue
        arguments = pipeline[0].refcli_arguments
        if len(pipeline) == 1 and arguments is not None and "--nproc" not in arguments:
            arguments = shortened(arguments) if is_short else arguments
            code, out, err = refcli(*arguments)
            assert code == 0, f"{block}: refcli {' '.join(arguments)}\n{err}"
            if pipeline[0].stdout is not None:
                Path(pipeline[0].stdout).write_text(out, encoding="utf-8")
        else:
            run_shell(statement, where=str(block))


def is_installed(program: str) -> bool:
    """Whether a program is here; refcli always is."""
    return program == "refcli" or shutil.which(program) is not None


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@with_blocks
@pytest.mark.parametrize(
    "is_short", [pytest.param(True, id="short"), pytest.param(False, id="complete", marks=pytest.mark.slow)]
)
def test_every_block_of_a_page_runs(name, is_short, folder, refcli, run_shell, monkeypatch):
    for block in blocks_of(ROOT / name):
        if block.language not in RUN_LANGUAGES or block.not_run or (block.slow and is_short):
            continue
        if name in INDEPENDENT_PAGES:
            own_folder = folder / f"line-{block.line}"
            own_folder.mkdir()
            monkeypatch.chdir(own_folder)
        run_block(block, refcli, run_shell, is_short=is_short)


@pytest.mark.parametrize("name", NAMES)
def test_every_block_names_its_language(name):
    for block in blocks_of(ROOT / name):
        assert block.language in (*RUN_LANGUAGES, *SHOWN_LANGUAGES), str(block)
        if block.language in SHOWN_LANGUAGES:
            assert not block.not_run and not block.slow, f"{block}: nothing runs such a block"


def test_the_gate_runs_the_commands_of_the_readme():
    gate = (ROOT / ".ci" / "run").read_text().splitlines()
    lines = [line for block in blocks_of(ROOT / "README.md") for line in block.text.splitlines()]
    assert "pip install . && refcli demo" in lines
    assert "pip install . && refcli demo" in gate
    assert 'pip install ".[test]" && pytest -n 2 --dist loadfile' in lines
    assert 'pip install ".[test]" && pytest -n 2 --dist loadfile' in gate
