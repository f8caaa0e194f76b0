"""Shared paths, checked shapes, and one thread for everything: the models of tests are too small to be divided."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from shape_checks import check_shapes

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; also for the programs that tests start
UNCHECKED = "REFCLI_UNCHECKED_SHAPES"
if UNCHECKED not in os.environ:
    check_shapes()
FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Golden values that the tests compare with."""
    return FIXTURES


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A weights directory of a tiny model that answers anything with a box and a mask, quickly."""
    import torch

    from refcli.config.schema import HeadChoice, ModelSettings, TowerSettings
    from refcli.grounder import Grounder
    from refcli.weights.directory import save_weights

    torch.manual_seed(0)
    settings = ModelSettings(
        tower=TowerSettings(image_size=32, dim=16, layers=1, heads=2, ffn_dim=16, vocabulary_size=4096),
        head=HeadChoice(settings={"res": True, "mask_upsamples": 1}),
    )
    folder = tmp_path_factory.mktemp("weights") / "random"
    save_weights(folder, Grounder.from_settings(settings), settings, meta={})
    return str(folder)


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run tests that use torch.compile in a process of their own: it cannot trace the checks of shapes."""
    if UNCHECKED in os.environ or pyfuncitem.get_closest_marker("compiles") is None:
        return None
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-m", "", pyfuncitem.nodeid]
    ran = subprocess.run(
        command, cwd=pyfuncitem.config.rootpath, env={**os.environ, UNCHECKED: "1"}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout
    return True


@pytest.fixture
def refcli(monkeypatch, capsys):
    """Run the command line in this process: (exit code, stdout, stderr)."""
    from refcli.cli.app import run

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["refcli", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            run()
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call
