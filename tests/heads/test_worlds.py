"""Two processes train a head as one does on their batches together, however the samples are distributed."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).parent / "world_gradients.py"


def gradients_of(size: int, folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    processes = [
        subprocess.Popen([sys.executable, str(PROGRAM), str(rank), str(size), str(folder)]) for rank in range(size)
    ]
    try:
        assert [process.wait(timeout=300) for process in processes] == [0] * size
    finally:
        for process in processes:
            process.kill()
    return torch.load(folder / f"{size}.pt")


@pytest.mark.slow
def test_the_averaged_gradients_of_two_processes_are_those_of_one(tmp_path):
    one, two = (gradients_of(size, tmp_path) for size in (1, 2))
    assert one.keys() == two.keys()
    for case, gradients in one.items():
        assert gradients.keys() == two[case].keys(), case
        for name, gradient in gradients.items():
            distance = (two[case][name] - gradient).norm()
            assert distance <= 1e-4 * gradient.norm() + 1e-6, f"{case}: {name}"
