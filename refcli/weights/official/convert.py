"""Convert official checkpoints to complete, checked weights directories that record their origin."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

import refcli
from refcli.config.schema import ModelSettings, TextSettings, TowerSettings
from refcli.errors import UsageError, WeightsError
from refcli.files import file_sha256
from refcli.tables import lookup
from refcli.text.tokenizer import OFFICIAL_NUM_PIECES, Tokenizer
from refcli.weights.directory import check_tokenizer
from refcli.weights.layout import (
    CONFIG_FILE,
    META_SCHEMA,
    MODEL_FILE,
    PRETRAINING_HEADS_FILE,
    TOKENIZER_FILE,
    TowerOnlySettings,
    explain_weights_write_errors,
    new_directory,
    write_meta,
)
from refcli.weights.official.conversions import beit3, cgformer, oneref, rela, vqkd
from refcli.weights.official.conversions.plan import ConversionPlan, KeyTableError, is_parameter
from refcli.weights.official.conversions.table import AUTO, CONVERSIONS
from refcli.weights.official.reading import Checkpoint, read_checkpoint
from refcli.weights.tensors import Mismatch, is_finite

Dtype = Literal["fp32", "bf16", "keep"]
DTYPES: Mapping[str, torch.dtype | None] = {"fp32": torch.float32, "bf16": torch.bfloat16, "keep": None}


@dataclass(frozen=True)
class ConversionReport:
    """The written directory, and the outcome for each tensor of the checkpoint."""

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
    """Official name, or top-level entry of the checkpoint -> why it was left out."""
    notes: tuple[str, ...]
    needs_tokenizer: bool
    """Whether the model needs beit3.spm, which is published separately: pull it, or put it into `out`."""


def detect_kind(state: Mapping[str, Tensor]) -> str:
    """The row of `CONVERSIONS` that fits the names of a state dict, even if all names share a prefix.

    Raises:
        WeightsError: no row fits.
    """
    kind = _known_kind(without_prefix(state)[0])
    if kind is None:
        raise WeightsError(
            f"the checkpoint is of an unknown kind: its tensors are called {', '.join(sorted(state)[:3])} ...",
            where="state dict",
            hint=f"known kinds: {', '.join(CONVERSIONS)}" + _hint_of_part(state),
        )
    return kind


def without_prefix(state: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], str]:
    """The tensors without a prefix that all names share (Lightning's "model."), if they are then of a known kind."""
    shortened, prefix = state, ""
    while _known_kind(shortened) is None:
        parts = {name.partition(".")[0] if "." in name else "" for name in shortened}
        part = next(iter(parts)) if len(parts) == 1 else ""
        if not part:
            return state, ""
        prefix += f"{part}."
        shortened = {name.removeprefix(f"{part}."): tensor for name, tensor in shortened.items()}
    return shortened, prefix


def _known_kind(state: Mapping[str, Tensor]) -> str | None:
    if vqkd.CODEBOOK in state:
        return "vqkd"
    if cgformer.TOKENS in state:
        return "cgformer"
    if rela.REGIONS in state or rela.OLD_REGIONS in state:
        return "rela"
    if beit3.WORDS in state or any(name.startswith("beit3.") for name in state):
        return "oneref" if oneref.MASK_HEAD in state or any(oneref.BOX_HEAD.match(name) for name in state) else "beit3"
    return None


def _hint_of_part(state: Mapping[str, Tensor]) -> str:
    """A hint if part of a larger model could be converted on its own."""
    for part in sorted({name.partition(".")[0] for name in state if "." in name}):
        inside = {
            name.removeprefix(f"{part}."): tensor for name, tensor in state.items() if name.startswith(f"{part}.")
        }
        if len(inside) < len(state) and _known_kind(without_prefix(inside)[0]):
            return f"; the {len(inside)} tensors below {part!r} are of a known kind: convert a file of these only"
    return ""


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
    """Convert an official `.pth` file; `out` is created complete at the end, or not at all.

    Args:
        path: the checkpoint.
        out: the directory to write; it must not exist, or be empty.
        kind: a row of `CONVERSIONS`, or `auto`.
        dtype: of the floating-point tensors; `keep` leaves them as they are in the file.
        image_size: (height, width) in pixels to resample the tower's positions to; None keeps the file's.
        heads: number of attention heads, if they do not have 64 channels each.
        tokenizer: `beit3.spm`; without it the model cannot answer until the file is pulled or put into `out`. It is
            not used, which the report notes, for a model that reads no text.
        origin: the origin of the file (repository, revision, licence), for meta.json.

    Raises:
        UsageError: `out` exists; heads or image size do not fit.
        WeightsError: unsafe, damaged or unknown file; missing, unexpected, misshapen or non-finite tensors, or ones of
            the wrong kind of number; a tokenizer that does not fit.
        RefcliError: the files cannot be written.
    """
    if dtype not in DTYPES:
        raise UsageError(f"there is no dtype {dtype!r}", where="--dtype", hint=f"one of {', '.join(DTYPES)}")
    _check_free(out)
    checkpoint = read_checkpoint(path)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    try:
        kind = detect_kind(checkpoint.state) if kind == AUTO else kind
        make_plan: Callable[..., ConversionPlan] = lookup(CONVERSIONS, kind, what="kind of checkpoint")
        state, prefix = without_prefix(checkpoint.state)
        plan = make_plan(state, args=checkpoint.args, heads=heads, image_size=size)
        main, apart = _as_stored(plan.state, dtype, kind=kind), _as_stored(plan.kept_apart, dtype, kind=kind)
    except WeightsError as problem:
        problem.where = str(path)
        raise
    settings = plan.settings.model_dump(mode="json")
    reader = plan.settings if isinstance(plan.settings, ModelSettings | TowerOnlySettings) else None
    notes = plan.notes + _notes(checkpoint, apart, prefix)
    if tokenizer is not None and reader is None:
        notes, tokenizer = (*notes, "it reads no text: the tokenizer is not used"), None
    if tokenizer is not None and reader is not None:
        _check_tokenizer(tokenizer, reader.tower)
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
        notes=notes,
        needs_tokenizer=reader is not None and tokenizer is None,
    )
    with new_directory(out) as folder:
        save_file(main, folder / MODEL_FILE, metadata={"format": "pt"})
        if apart:
            save_file(apart, folder / PRETRAINING_HEADS_FILE, metadata={"format": "pt"})
        if tokenizer is not None:
            shutil.copyfile(tokenizer, folder / TOKENIZER_FILE)
        (folder / CONFIG_FILE).write_text(yaml.safe_dump(settings, sort_keys=False))
        sha256s = {file.name: file_sha256(file) for file in sorted(folder.iterdir())}
        meta = _meta(checkpoint, report, origin) | {"files": sha256s}
        write_meta(folder, meta)
    return report


def _check_free(out: Path) -> None:
    hint = "choose another name"
    with explain_weights_write_errors(out), suppress(FileNotFoundError):
        out.stat()  # raises for links that form a loop, and where a file takes the place of a folder
    with explain_weights_write_errors(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError("the output directory already exists", where=str(out), hint=hint)
        if out.resolve() == Path.cwd():
            raise UsageError("this would replace the folder you are in", where=str(out), hint=hint)


def _as_stored(tensors: dict[str, Tensor], dtype: Dtype, *, kind: str) -> dict[str, Tensor]:
    """The tensors as they are stored: cast, contiguous, without shared memory, and finite.

    They are removed from `tensors` one by one, so that only one of them is in memory in both types.
    """
    finished: dict[str, Tensor] = {}
    owners: set[int] = set()
    for name in list(tensors):
        tensor = tensors.pop(name)
        wanted = DTYPES[dtype] if tensor.is_floating_point() else None
        cast = tensor.to(wanted or tensor.dtype).contiguous()
        storage = cast.untyped_storage()
        if storage.data_ptr() in owners or storage.nbytes() != cast.nbytes:
            cast = cast.clone()
        owners.add(cast.untyped_storage().data_ptr())
        finished[name] = cast
    rows = [
        Mismatch(name, "NaN or infinity", tuple(tensor.shape))
        for name, tensor in finished.items()
        if not is_finite(tensor)
    ]
    if rows:
        raise KeyTableError(kind, rows)
    return finished


def _check_tokenizer(path: Path, tower: TowerSettings) -> None:
    """Check that the file can be the tokenizer; its pieces are only counted."""
    tokenizer = Tokenizer.load(TextSettings(tokenizer=str(path)))
    check_tokenizer(tokenizer, tower, where=str(path))
    if tower.vocabulary_size == beit3.PUBLISHED_WORD_ROWS and tokenizer.num_pieces != OFFICIAL_NUM_PIECES:
        raise WeightsError(
            f"the tokenizer has {tokenizer.num_pieces:,} pieces, not the published {OFFICIAL_NUM_PIECES:,}",
            where=str(path),
            hint="give beit3.spm: any other would turn words into the wrong ids",
        )


def _notes(checkpoint: Checkpoint, apart: Mapping[str, Tensor], prefix: str) -> tuple[str, ...]:
    notes = checkpoint.notes + ((f"removed from the names: {prefix}",) if prefix else ())
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
