"""Presets, values of --set and the files of weights: every text and every byte."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from typing import Any

import pytest
import torch
import yaml
from harness import NASTY, NASTY_TEXT, NUM_INPUTS, damaged, fuzz, mutated_json, mutated_json_bytes
from hypothesis import strategies as st
from safetensors.torch import load_file

from refcli.config.explain import explain
from refcli.config.load import apply_overrides, load_finetune, load_pretrain, stages_of
from refcli.config.presets import list_presets, preset_path
from refcli.config.schema import HeadChoice, ModelSettings, TowerSettings
from refcli.errors import RefcliError
from refcli.grounder import Grounder
from refcli.heads.table import HEADS
from refcli.recipes.weights import describe_weights
from refcli.weights.checks import read_info, unchecked, verify
from refcli.weights.directory import load_weights, save_weights
from refcli.weights.pull import read_origin

TEXTS = [preset_path(group, name).read_bytes() for group in ("finetune", "pretrain") for name in list_presets(group)]
VALUES = [yaml.safe_load(text) for text in TEXTS]
YAML_PIECES = (
    b"&a ", b"*a", b"<<: *a", b"- ", b"? ", b": ", b"{", b"}", b"[", b"]", b"!!int ", b"!!float ", b"!!bool ",
    b"!!set ", b"!!timestamp ", b"!!binary ", b"!!omap ", b"!!python/name:os.system ", b"2024-13-45", b"1e999",
    b".nan", b"0x", b"0o8", b"1:99:99", b"1_000", b"=", b"|", b">", b"'", b'"', b"\n", b"\r", b"\t",
    b"%YAML 9.9\n---\n", b"...\n", b"\x85", b"9" * 400, b"yes", b"~", b"#", b"@", b"`", b"\xff", b"\xed\xa0\x80",
    b"layers: 999999999999",
)  # fmt: skip
OVERRIDES = (
    "train.steps", "optim.options", "model.head.settings", "model.tower.layers", "stages.a.train", "data.train", "",
)  # fmt: skip
HEAD_SETTINGS: dict[str, dict[str, Any]] = {
    "oneref": {"res": True, "existence": True},
    "rela": {"dim": 8, "heads": 2, "decoder_layers": 1, "pixel_layers": 1, "pyramid_channels": [8, 8, 8, 8]},
    "cgformer": {"dim": 16, "pyramid_channels": [8, 8, 8, 8]},
    "instances": {"dim": 16, "mask_dim": 8, "heads": 2, "ffn_dim": 16},
    "shared_ris": {"dim": 16, "heads": 2},
}
PULLED = {"name": "x", "repo": "a/b", "file": "c", "revision": "d", "sha256": "e", "num_bytes": 5}


@st.composite
def yaml_bytes(draw: st.DrawFn) -> bytes:
    """A preset with pieces of YAML inserted anywhere, with changed values, or damaged."""
    content = bytearray(draw(st.sampled_from(TEXTS)))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(content)))
        content[at : at + draw(st.integers(0, 8))] = draw(st.sampled_from(YAML_PIECES))
    return bytes(content)


PRESETS = st.one_of(yaml_bytes(), damaged(TEXTS), mutated_json_bytes(VALUES), st.sampled_from(NASTY_TEXT))


@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
def test_any_preset_is_read_or_refused(tmp_path, num_inputs):
    path = tmp_path / "p.yaml"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        with suppress(RefcliError):
            explain(load_pretrain(str(path)))
        settings = load_finetune(str(path))
        explain(settings)
        stages_of(settings)

    fuzz(PRESETS, read, num_inputs)


@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
def test_any_override_is_accepted_or_refused(num_inputs):
    pieces = st.sampled_from([piece.decode("latin-1") for piece in YAML_PIECES])
    texts = st.one_of(st.lists(pieces, max_size=6).map("".join), st.text(max_size=20), st.sampled_from(NASTY).map(str))
    keys = st.one_of(st.sampled_from(OVERRIDES), st.text(max_size=5), st.lists(pieces, max_size=3).map(".".join))
    overrides = st.lists(st.tuples(keys, texts).map("=".join), min_size=1, max_size=3)

    def read(given: list[str]) -> None:
        apply_overrides({}, given)
        load_finetune("synthetic_tiny", given)

    fuzz(overrides, read, num_inputs)


@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
def test_any_name_of_a_preset_is_found_or_refused(num_inputs):
    fuzz(st.one_of(st.text(), st.sampled_from(NASTY).map(str)), lambda name: load_finetune(name), num_inputs)


def small(folder: Any, head: str) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Settings, meta.json and tensors of small weights with that head."""
    tower = TowerSettings(image_size=32, dim=16, layers=1, heads=2, ffn_dim=16, vocabulary_size=700)
    model = ModelSettings(tower=tower, head=HeadChoice(name=head, settings=HEAD_SETTINGS[head]))
    torch.manual_seed(0)
    save_weights(folder, Grounder.from_settings(model), model, meta={"steps": 3, "notes": ["x"], "tasks": ["box"]})
    meta = json.loads((folder / "meta.json").read_text())
    meta |= {
        "source": {"file": "x.pth", "args": {"lr": 1.0, "names": [1]}},
        "origin": {**PULLED, "member": None, "tokenizer": None},
        "scores": {"splits": {"a": {"overall": {"acc50": 0.5}}}},
    }
    return yaml.safe_load((folder / "config.yaml").read_text()), meta, (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("num_inputs", NUM_INPUTS)
@pytest.mark.filterwarnings("ignore")
def test_any_files_of_weights_are_loaded_or_refused(tmp_path, num_inputs):
    whole = {head: small(tmp_path / head, head) for head in HEADS}
    assert all(load_file(tmp_path / head / "model.safetensors") for head in HEADS)

    @st.composite
    def files(draw: st.DrawFn) -> tuple[str, bytes, bytes, bytes]:
        head = draw(st.sampled_from(sorted(whole)))
        settings, meta, model = whole[head]
        contents = [yaml.safe_dump(settings).encode(), json.dumps(meta).encode(), model]
        which = draw(st.integers(0, 3))
        if which in (0, 3):
            contents[0] = draw(st.one_of(mutated_json_bytes([settings]), damaged([contents[0]])))
        if which in (1, 3):
            contents[1] = draw(st.one_of(mutated_json_bytes([meta]), damaged([contents[1]])))
        if which == 2:
            header = int.from_bytes(model[:8], "little")
            changed = draw(mutated_json([json.loads(model[8 : 8 + header])]))
            text = json.dumps(changed).encode()
            contents[2] = draw(
                st.one_of(st.just(len(text).to_bytes(8, "little") + text + model[8 + header :]), damaged([model]))
            )
        return head, *contents

    def read(given: tuple[str, bytes, bytes, bytes]) -> None:
        folder = tmp_path / given[0]
        for name, content in zip(("config.yaml", "meta.json", "model.safetensors"), given[1:], strict=True):
            (folder / name).write_bytes(content)
        verify(folder)
        read_origin(folder)
        for look in (
            unchecked,
            read_info,
            lambda path: describe_weights(str(path)),
            lambda path: load_weights(str(path)),
        ):
            with suppress(RefcliError):
                look(folder)

    fuzz(files(), read, num_inputs)
    shutil.rmtree(tmp_path, ignore_errors=True)
