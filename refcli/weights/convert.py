"""Official checkpoints become weights directories: whole, checked and with their story, or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

import refcli
from refcli.config.schema import TextSettings
from refcli.errors import UsageError, WeightsError
from refcli.files import file_sha256
from refcli.tables import lookup
from refcli.text.tokenizer import Tokenizer
from refcli.weights.conversions import beit3, oneref, vqkd
from refcli.weights.conversions.plan import KeyRow, KeyTableError, Plan, is_parameter
from refcli.weights.conversions.table import CONVERSIONS
from refcli.weights.load import CONFIG_FILE, META_FILE, MODEL_FILE, TOKENIZER_FILE
from refcli.weights.reading import Checkpoint, read_checkpoint

PRETRAINING_HEADS_FILE = "pretraining_heads.safetensors"
"""Tensors of a checkpoint that the model has no place for, under their official names."""
Dtype = Literal["fp32", "bf16", "keep"]
DTYPES: Mapping[str, torch.dtype | None] = {"fp32": torch.float32, "bf16": torch.bfloat16, "keep": None}
META_SCHEMA = "refcli.weights/1"
AUTO = "auto"


@dataclass(frozen=True)
class ConversionReport:
    """What was written, and what became of every tensor of the checkpoint."""

    out: Path
    kind: str
    dtype: Dtype
    tasks: tuple[str, ...]
    num_parameters: int
    names: Mapping[str, str]
    """Official name -> ours."""
    kept_apart: tuple[str, ...]
    """Official names in `pretraining_heads.safetensors`."""
    dropped: Mapping[str, str]
    """Official name, or top-level entry of the checkpoint, -> why it was left out."""
    notes: tuple[str, ...]
    needs_tokenizer: bool
    """Whether beit3.spm, which is published apart, has to be put into `out` before the model can be asked."""


def detect_kind(state: Mapping[str, Tensor]) -> str:
    """Tell a row of `CONVERSIONS` by the names of a state dict.

    Raises:
        WeightsError: none of them.
    """
    if vqkd.CODEBOOK in state:
        return "vqkd"
    if beit3.WORDS in state or any(name.startswith("beit3.") for name in state):
        return "oneref" if oneref.MASK_HEAD in state or any(oneref.BOX_HEAD.match(name) for name in state) else "beit3"
    raise WeightsError(
        f"the checkpoint is of no known kind: its tensors are called {', '.join(sorted(state)[:3])} ...",
        where="state dict",
        hint=f"known kinds: {', '.join(CONVERSIONS)}",
    )


def convert(
    path: Path,
    *,
    out: Path,
    kind: str = AUTO,
    dtype: Dtype = "fp32",
    image_size: int | tuple[int, int] | None = None,
    heads: int | None = None,
    tokenizer: Path | None = None,
    origin: Mapping[str, object] | None = None,
) -> ConversionReport:
    """Convert an official `.pth` file; `out` appears complete at the end, or not at all.

    Args:
        path: the checkpoint.
        out: the directory to write; it must not exist, or be empty.
        kind: a row of `CONVERSIONS`, or `auto`.
        dtype: of the floating-point tensors; `keep` leaves them as they are in the file.
        image_size: (height, width) in pixels to resample the tower's positions to; None keeps the file's.
        heads: number of attention heads, where they do not have 64 channels.
        tokenizer: `beit3.spm`; without it the model cannot be asked until the file is put beside it.
        origin: where the file is from (repository, revision, licence), for meta.json.

    Raises:
        UsageError: `out` is taken; heads, image size or tokenizer do not fit.
        WeightsError: unsafe, damaged or unknown file; missing, unexpected, misshapen or non-finite tensors.
    """
    if dtype not in DTYPES:
        raise UsageError(f"there is no dtype {dtype!r}", where="--dtype", hint=f"one of {', '.join(DTYPES)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError("the output directory is already there", where=str(out), hint="choose another name")
    checkpoint = read_checkpoint(path)
    kind = detect_kind(checkpoint.state) if kind == AUTO else kind
    make_plan: Callable[..., Plan] = lookup(CONVERSIONS, kind, what="kind of checkpoint")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    try:
        plan = make_plan(checkpoint.state, args=checkpoint.args, heads=heads, image_size=size)
        main, apart = _finished(plan.state, dtype, kind=kind), _finished(plan.kept_apart, dtype, kind=kind)
    except WeightsError as problem:
        problem.where = str(path)
        raise
    settings = plan.settings.model_dump(mode="json")
    if "text" in settings and tokenizer is not None:
        _check_tokenizer(tokenizer, vocabulary_size=settings["tower"]["vocabulary_size"])
        settings["text"]["tokenizer"] = TOKENIZER_FILE
    dropped = dict.fromkeys(checkpoint.dropped, "not part of the model") | plan.dropped
    report = ConversionReport(
        out=out,
        kind=kind,
        dtype=dtype,
        tasks=plan.tasks,
        num_parameters=sum(tensor.numel() for name, tensor in main.items() if is_parameter(name)),
        names=plan.names,
        kept_apart=tuple(sorted(apart)),
        dropped=dropped,
        notes=plan.notes + _notes(checkpoint, apart),
        needs_tokenizer="text" in settings and tokenizer is None,
    )
    with _Appearing(out) as folder:
        save_file(main, folder / MODEL_FILE, metadata={"format": "pt"})
        if apart:
            save_file(apart, folder / PRETRAINING_HEADS_FILE, metadata={"format": "pt"})
        if "text" in settings and tokenizer is not None:
            shutil.copyfile(tokenizer, folder / TOKENIZER_FILE)
        (folder / CONFIG_FILE).write_text(yaml.safe_dump(settings, sort_keys=False))
        sha256s = {file.name: file_sha256(file) for file in sorted(folder.glob("*.safetensors"))}
        meta = _meta(checkpoint, report, origin) | {"files": sha256s}
        (folder / META_FILE).write_text(json.dumps(meta, indent=1) + "\n")
    return report


def plan_visual_tokenizer(
    official: Mapping[str, Tensor], *, args: Mapping[str, Any], heads: int | None, image_size: tuple[int, int] | None
) -> Plan:
    """The VQ-KD encoder and its codebook.

    Raises:
        UsageError: an image size: this model resamples its positions for every picture itself.
        WeightsError: missing, misshapen or unknown tensors.
    """
    if image_size is not None:
        raise UsageError(
            "a visual tokenizer has no image size to change", where="--image-size", hint="it takes pictures of any size"
        )
    settings = vqkd.settings_of(official, heads=heads)
    state = vqkd.from_official(official)
    ours_of = {id(tensor): name for name, tensor in state.items()}
    return Plan(
        settings=settings,
        state=state,
        names={theirs: ours_of[id(tensor)] for theirs, tensor in vqkd.to_official(state).items()},
        dropped=dict.fromkeys(vqkd.left_out(official), "only the training of the tokenizer needs it"),
        notes=("a visual tokenizer, for `refcli pretrain`",),
    )


def _finished(tensors: Mapping[str, Tensor], dtype: Dtype, *, kind: str) -> dict[str, Tensor]:
    """The tensors as they are stored: cast, contiguous, without shared memory, and finite."""
    finished: dict[str, Tensor] = {}
    owners: set[int] = set()
    for name, tensor in tensors.items():
        wanted = DTYPES[dtype] if tensor.is_floating_point() else None
        cast = tensor.to(wanted or tensor.dtype).contiguous()
        storage = cast.untyped_storage()
        if storage.data_ptr() in owners or storage.nbytes() != cast.nbytes:
            cast = cast.clone()
        owners.add(cast.untyped_storage().data_ptr())
        finished[name] = cast
    rows = [
        KeyRow(name, "NaN or infinity", tuple(tensor.shape))
        for name, tensor in finished.items()
        if tensor.is_floating_point() and not torch.isfinite(tensor).all()
    ]
    if rows:
        raise KeyTableError(kind, rows)
    return finished


def _check_tokenizer(path: Path, *, vocabulary_size: int) -> None:
    needed = Tokenizer.load(TextSettings(tokenizer=str(path))).vocabulary_size
    if needed > vocabulary_size:
        raise UsageError(
            f"the tokenizer has {needed:,} ids, more than the tower embeds ({vocabulary_size:,})",
            where=str(path),
            hint="published models need beit3.spm",
        )


def _notes(checkpoint: Checkpoint, apart: Mapping[str, Tensor]) -> tuple[str, ...]:
    notes: tuple[str, ...] = ()
    if apart:
        heads = sorted({name.split(".")[0] for name in apart})
        notes += (f"{', '.join(heads)}: kept in {PRETRAINING_HEADS_FILE} under the official names",)
    if checkpoint.unknown_types:
        notes += (f"args of unknown types are kept as text: {', '.join(checkpoint.unknown_types)}",)
    return notes


def _meta(checkpoint: Checkpoint, report: ConversionReport, origin: Mapping[str, object] | None) -> dict[str, object]:
    return {
        "schema": META_SCHEMA,
        "refcli": refcli.__version__,
        "kind": report.kind,
        "tasks": list(report.tasks),
        "dtype": report.dtype,
        "source": {
            "file": checkpoint.path.name,
            "bytes": checkpoint.path.stat().st_size,
            "sha256": checkpoint.source_sha256,
            "epoch": checkpoint.epoch,
            "args": checkpoint.args,
        },
        "origin": dict(origin or {}),
        "notes": list(report.notes),
        "keys": {
            "converted": dict(report.names),
            "kept_apart": list(report.kept_apart),
            "dropped": dict(report.dropped),
        },
    }


class _Appearing:
    """A directory that is written under another name and moved to its own when the block ends well."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def __enter__(self) -> Path:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(dir=self.out.parent, prefix=f".{self.out.name}."))
        return self.folder

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        try:
            if kind is None:
                for path in self.folder.iterdir():
                    path.chmod(0o644)
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
                self.folder.chmod(0o755)
                if self.out.is_dir():
                    self.out.rmdir()
                self.folder.replace(self.out)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
