"""The published layouts at full size are converted, reloaded and converted back in bounded memory."""

import json
import subprocess
import sys
import tempfile
from argparse import Namespace
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import refcli
from refcli.config.schema import TextSettings
from refcli.text.tokenizer import Tokenizer
from refcli.weights.directory import load_weights
from refcli.weights.layout import PRETRAINING_HEADS_FILE
from refcli.weights.official import convert as converting
from refcli.weights.official.conversions import beit3, oneref
from refcli.weights.official.convert import convert

pytestmark = pytest.mark.slow
BUILTIN_SPM = Path(refcli.__file__).parent / "text" / "builtin.spm"
PARAMETERS = {
    "oneref_base_384_rec": 224_824_325,
    "oneref_base_384_res": 224_824_325 + 7_082_496,
    "oneref_large_384_rec": 679_391_237,
    "oneref_large_384_res": 691_980_293,
    "oneref_base_384_mrefm_rec": 282_713_876,
    "beit3_base_224_indomain_backbone": 220_987_392,
}
"""Number of parameters of the published models."""


@pytest.fixture
def folder():
    """A folder for gigabytes, removed at once; pytest would keep its own directories for three runs."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def published(fixtures, layout):
    """Every tensor of a published layout; each has different values, so that a swap is detected."""
    entries = json.loads((fixtures / "keys" / f"{layout}.json").read_text())["tensors"]
    state = {}
    for number, (name, entry) in enumerate(entries.items(), start=1):
        bits = torch.full(entry["shape"], number, dtype=torch.int16)
        state[name] = bits.view(torch.bfloat16) if entry["dtype"] == "float32" else torch.tensor(number)
    return state, {name for name, entry in entries.items() if entry["param"]}


@pytest.mark.parametrize("layout", PARAMETERS)
def test_a_published_layout_converts_reloads_and_converts_back_bit_by_bit(fixtures, folder, layout, monkeypatch):
    monkeypatch.setattr(converting, "OFFICIAL_NUM_PIECES", Tokenizer.load(TextSettings()).num_pieces)
    official, parameters = published(fixtures, layout)
    assert sum(official[name].numel() for name in parameters) == PARAMETERS[layout]
    content = {"model": official, "epoch": 1, "args": Namespace(use_regress_box=True, use_mask_loss="res" in layout)}
    torch.save(content, folder / "c.pth")
    report = convert(folder / "c.pth", out=folder / "w", dtype="keep", tokenizer=BUILTIN_SPM)
    ours = load_file(folder / "w" / "model.safetensors")
    back = (beit3 if layout.startswith("beit3") else oneref).to_official(ours)
    if report.kept_apart:
        back |= load_file(folder / "w" / PRETRAINING_HEADS_FILE)
    assert set(report.dropped) <= {"text_proj.weight", "text_proj.bias", "logit_scale"}
    assert back.keys() == official.keys() - report.dropped.keys()
    assert all(torch.equal(back[name], official[name]) for name in back)
    dropped = sum(official[name].numel() for name in report.dropped)
    apart = sum(official[name].numel() for name in report.kept_apart)
    assert report.num_parameters == PARAMETERS[layout] - dropped - apart
    if report.kind == "oneref":
        loaded = load_weights(str(folder / "w"), dtype=torch.bfloat16)
        state = loaded.grounder.state_dict()
        assert state.keys() == ours.keys()
        assert all(torch.equal(state[name], ours[name]) for name in ours)


MEASURED = """
import re, sys
from pathlib import Path
from refcli.weights.official.convert import convert
from refcli.weights.official.reading import read_checkpoint

def peak():
    # not ru_maxrss, which a process inherits from the one that started it
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

read_checkpoint(Path(sys.argv[1]))
before = peak()
convert(Path(sys.argv[1]), out=Path(sys.argv[2]), dtype=sys.argv[3])
sys.stdout.write(str(peak() - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports the peak this way")
@pytest.mark.parametrize(
    ("layout", "stored", "dtype"),
    [
        ("oneref_base_384_rec", torch.float32, "fp32"),
        ("oneref_base_384_rec", torch.float32, "bf16"),
        ("beit3_base_224_indomain_backbone", torch.float16, "fp32"),
    ],
)
def test_converting_needs_less_than_two_and_a_half_times_the_models_size(fixtures, folder, layout, stored, dtype):
    """The size is that of the model in float32; a file in half precision has half of it."""
    entries = json.loads((fixtures / "keys" / f"{layout}.json").read_text())["tensors"]
    shapes = {name: entry["shape"] for name, entry in entries.items()}
    model = {name: torch.zeros(shape, dtype=stored) for name, shape in shapes.items()}
    optimizer = {"state": {i: {"exp_avg": torch.zeros(s, dtype=stored)} for i, s in enumerate(shapes.values())}}
    torch.save({"model": model, "optimizer": optimizer}, folder / "c.pth")
    size = 4 * sum(prod(shape) for shape in shapes.values())
    del model, optimizer
    assert (folder / "c.pth").stat().st_size > 2 * size * stored.itemsize / 4
    command = [sys.executable, "-c", MEASURED, str(folder / "c.pth"), str(folder / "w"), dtype]
    needed = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 0.4 * size < needed < 2.5 * size, f"{needed / size:.2f} times"
