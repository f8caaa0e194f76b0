"""A packaged model is stored in half precision, tells how good it is, and any change of its files is found."""

from __future__ import annotations

import json

from refcli.grounder import Grounder
from refcli.recipes.package_model import package_model
from refcli.weights.checks import info, unchecked, verify
from refcli.weights.directory import save_weights


def test_a_packaged_model_tells_its_story_and_its_checksums(tmp_path, half_empty, settings):
    trained = tmp_path / "trained"
    save_weights(trained, Grounder.from_settings(settings.model), settings.model, meta={"steps": 6, "seed": 3})
    asked = (half_empty, "squares:val")
    meta = package_model(trained, calibrate=asked, score=asked, out=tmp_path / "packaged")

    assert meta == json.loads((tmp_path / "packaged" / "meta.json").read_text())
    told = info(tmp_path / "packaged")
    assert told.training == {"steps": 6, "seed": 3, "existence_threshold_from": "squares:val"}
    assert told.scores["squares:val"]["count"] == 16
    assert "BF16" in told.dtypes
    assert verify(tmp_path / "packaged") == unchecked(tmp_path / "packaged") == []
    config = tmp_path / "packaged" / "config.yaml"
    config.write_text(config.read_text().replace("existence_threshold: 0", "existence_threshold: 1"))
    assert any(problem.startswith("config.yaml is not the file that was written") for problem in verify(config.parent))
