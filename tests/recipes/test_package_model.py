"""A packaged model is stored in half precision with its scores, and any change of its files is detected."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from refcli.grounder import Grounder
from refcli.weights.checks import read_info, unchecked, verify
from refcli.weights.directory import save_weights

SCRIPT = Path(__file__).parents[2] / "tools" / "package_model.py"


def test_a_packaged_model_states_its_training_its_scores_and_its_checksums(tmp_path, half_empty, settings):
    trained, packaged = tmp_path / "trained", tmp_path / "packaged"
    save_weights(trained, Grounder.from_settings(settings.model), settings.model, meta={"steps": 6, "seed": 3})
    split = (str(half_empty), "squares:val")
    command = [str(trained), "--calibrate", *split, "--score", *split, "--out", str(packaged)]
    subprocess.run([sys.executable, str(SCRIPT), *command], check=True)

    described = read_info(packaged)
    assert described.training == {"steps": 6, "seed": 3, "existence_threshold_from": "squares:val"}
    assert described.scores["squares:val"]["count"] == 16
    assert "BF16" in described.dtypes
    assert verify(packaged) == unchecked(packaged) == []
    config = packaged / "config.yaml"
    config.write_text(config.read_text().replace("existence_threshold: 0", "existence_threshold: 1"))
    assert any(problem.startswith("config.yaml is not the file that was written") for problem in verify(packaged))
