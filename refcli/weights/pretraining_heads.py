"""The heads of a pre-training run beside its weights, under the official names, so that another run can go on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from refcli.errors import WeightsError
from refcli.files import write_atomically
from refcli.weights.meta import read_meta, write_meta
from refcli.weights.misfits import misfits
from refcli.weights.official.convert import PRETRAINING_HEADS_FILE

OFFICIAL_NAMES = (
    (re.compile(r"^mim\."), "mim_head."),
    (re.compile(r"^mlm\."), "mlm_head."),
    (re.compile(r"^visual_target_relation\.(0|2|4)\."), "mim_vts_head.layers.{layer}."),
    (re.compile(r"^semantic_target_relation\.(0|2|4)\."), "mlm_sts_head.layers.{layer}."),
)
"""Our name of a tensor -> the official one. Theirs counts the linear layers only, ours the ReLUs as well."""


def official_name(name: str) -> str:
    """The official name of one of `MRefMHeads`' tensors."""
    for pattern, replacement in OFFICIAL_NAMES:
        if match := pattern.match(name):
            layer = int(match[1]) // 2 if match.groups() else 0
            return replacement.format(layer=layer) + name[match.end() :]
    raise KeyError(name)


def save_pretraining_heads(directory: Path, heads: nn.Module) -> None:
    """Write `pretraining_heads.safetensors` into a weights directory, after its sha256 in meta.json."""
    state = {official_name(name): tensor.float().contiguous().cpu() for name, tensor in heads.state_dict().items()}
    content, meta = save(state, metadata={"format": "pt"}), read_meta(directory)
    meta["files"] = {**meta.get("files", {}), PRETRAINING_HEADS_FILE: hashlib.sha256(content).hexdigest()}
    write_meta(directory, meta)
    write_atomically(directory / PRETRAINING_HEADS_FILE, content)


def load_pretraining_heads(directory: Path, heads: nn.Module) -> tuple[str, ...]:
    """Copy the heads that lie beside some weights, as far as they are there and of the right size.

    Returns:
        What the user should know: which heads start fresh.

    Raises:
        WeightsError: the file is damaged.
    """
    path = directory / PRETRAINING_HEADS_FILE
    given: Mapping[str, Tensor] = {}
    if path.is_file():
        try:
            given = load_file(path)
        except (SafetensorError, OSError) as problem:
            raise WeightsError(f"the pre-training heads are damaged: {problem}", where=str(path)) from problem
    fresh = []
    for name, head in heads.named_children():
        wanted = {f"{name}.{key}": tensor for key, tensor in head.state_dict().items()}
        found = {key: given[official_name(key)] for key in wanted if official_name(key) in given}
        if misfits(wanted, found):
            fresh.append(name)
        else:
            head.load_state_dict({key.removeprefix(f"{name}."): tensor for key, tensor in found.items()})
    return (f"start fresh: the pre-training heads {', '.join(fresh)}",) if fresh else ()
