"""Checkpoints of a known model with names, tensors and arguments changed: converted or refused."""

from __future__ import annotations

import copy
import shutil
from argparse import Namespace

import pytest
import torch
from harness import NASTY, fuzz
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_tokenizer import write_small_tokenizer

from refcli.weights.official.convert import convert

ARGS = {"use_regress_box": True, "use_mask_loss": True, "max_query_len": 16}
CHANGES = (
    lambda tensor: tensor.flatten()[:0],
    lambda tensor: tensor.flatten(),
    lambda tensor: tensor[None],
    lambda tensor: torch.stack([tensor, tensor]).flatten(0, 1) if tensor.ndim else tensor.expand(2),
    lambda tensor: tensor.to(torch.int64),
    lambda tensor: tensor.to(torch.complex64),
    lambda tensor: tensor * float("nan"),
    lambda tensor: tensor.to(torch.float16),
    lambda tensor: torch.tensor(1.0),
    lambda _: None,
    lambda _: "a text",
    lambda tensor: {"weight": tensor},
)


@pytest.mark.parametrize("num_inputs", [40, pytest.param(2_000, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_any_changed_checkpoint_of_a_known_model_is_converted_or_refused(fixtures, tmp_path, num_inputs):
    official = load_file(fixtures / "oneref_tiny_res" / "weights.safetensors")
    path, out, words = tmp_path / "c.pth", tmp_path / "out", write_small_tokenizer(tmp_path / "words.model")

    @st.composite
    def checkpoints(draw: st.DrawFn) -> dict:
        state, args = dict(official), dict(ARGS)
        for name in draw(st.lists(st.sampled_from(sorted(official)), max_size=2, unique=True)):
            match draw(st.sampled_from(("change", "change", "remove", "rename"))):
                case "change":
                    state[name] = draw(st.sampled_from(CHANGES))(state[name])
                case "remove":
                    del state[name]
                case "rename":
                    state[draw(st.sampled_from(("", name + ".x", "module." + name, "\x1b[31m", "x" * 5000)))] = (
                        state.pop(name)
                    )
        for key in draw(st.lists(st.sampled_from(sorted(ARGS)), max_size=2, unique=True)):
            args[key] = copy.deepcopy(draw(st.sampled_from(NASTY)))
        return {"model": state, "args": Namespace(**args), "epoch": draw(st.sampled_from(NASTY))}

    def read(content: dict) -> None:
        shutil.rmtree(out, ignore_errors=True)
        torch.save(content, path)
        convert(path, out=out, heads=4, tokenizer=words)

    fuzz(checkpoints(), read, num_inputs)
