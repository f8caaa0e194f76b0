"""Official PyTorch checkpoints become tensors and plain data, and nothing in the file is ever executed."""

from __future__ import annotations

import math
import re
import stat
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from refcli.errors import UsageError, WeightsError
from refcli.files import file_sha256
from refcli.weights.archives import CHECKPOINT_SUFFIXES
from refcli.weights.pickle_survey import FETCH_AGAIN, survey
from refcli.weights.stand_ins import BUILT_AS, NAMESPACES, Opaque, stand_in

CONTAINERS = ("model", "model_state_dict", "module", "state_dict")
"""Keys under which a checkpoint holds its tensors, in the order of the official loaders; else it is all tensors."""
DDP_PREFIX = "module."
ZIP_START, PICKLE_START = b"PK\x03\x04", b"\x80"
SAFETENSORS_HEADER = 8
"""Bytes of a safetensors file, its header's length, before the header, which is JSON."""
LEGACY_PICKLES = 5
"""Magic number, protocol, system, object, storage keys: then the raw tensors follow."""
MAX_PICKLE_BYTES = 8 << 20
"""The largest OneRef model with all of its optimiser state is described in 360 kB."""
MAX_NAME = 200
"""Letters in the name of a tensor; the longest published one has 56."""
MAX_ARG_VALUES, MAX_ARG_DEPTH, MAX_ARG_TEXT = 20_000, 8, 2_000
DTYPES = frozenset(
    {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64, torch.uint8, torch.bool}
)
Container = Literal["zip", "legacy", "safetensors"]


@dataclass(frozen=True)
class Checkpoint:
    """What an official training checkpoint holds besides its optimiser."""

    path: Path
    state: dict[str, Tensor]
    """Official name -> tensor on the CPU; mapped from the file, so that its memory is the disk's.

    Only what torch.save wrote before 1.6 is read as a whole, with the optimiser's tensors.
    """
    args: dict[str, Any]
    """The training arguments as plain data; empty where the file has none."""
    epoch: int | None
    dropped: tuple[str, ...]
    """Top-level entries that were not taken, such as `optimizer`."""
    unknown_types: tuple[str, ...]
    """Types named by the file that were not rebuilt; inside `args` they are text."""

    @cached_property
    def source_sha256(self) -> str:
        """The sha256 of the file, in hex; read when first asked for."""
        return file_sha256(self.path)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of the OneRef, BEiT-3 or VQ-KD kind: a `.pth` file, or a state dict as safetensors.

    Pickles are looked through, and what would harm or unfold without end is refused, before torch's restricted
    unpickler reads the tensors. Types that it does not know are replaced by inert stand-ins, so that training arguments
    can be told.

    Raises:
        UsageError: no such file.
        WeightsError: damaged, oversized or hostile file, or one that holds no state dict.
    """
    container = _container(path)
    try:
        if container == "safetensors":
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return _interpret(path, tensors, unknown_types=())
        stand_ins = _stand_ins(path, container)
        with torch.serialization.safe_globals(stand_ins):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=container == "zip")
        return _interpret(path, loaded, unknown_types=tuple(each.type_name for each in stand_ins))
    except WeightsError:
        raise
    except Exception as problem:  # a broken or hostile file can fail in any way
        raise WeightsError(
            "the checkpoint cannot be read as tensors and plain data",
            where=str(path),
            hint=_reason(problem.__context__ or problem),  # torch wraps the cause in advice to read it unsafely
        ) from problem


def _container(path: Path) -> Container:
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            with path.open("rb") as file:
                start = file.read(SAFETENSORS_HEADER + 1)
    except OSError as problem:
        what = (
            "there is no such checkpoint file" if isinstance(problem, FileNotFoundError) else "the file cannot be read"
        )
        raise UsageError(what, where=str(path), hint=problem.strerror) from problem
    if not stat.S_ISREG(mode):
        what = "a directory" if stat.S_ISDIR(mode) else "no ordinary file"
        raise UsageError(f"this is {what}, not a checkpoint file", where=str(path), hint="give the file itself")
    if start[SAFETENSORS_HEADER:] == b"{":
        return "safetensors"
    if start.startswith(ZIP_START):
        return "zip"
    if start.startswith(PICKLE_START):
        return "legacy"
    raise WeightsError(
        "this is not a PyTorch checkpoint",
        where=str(path),
        hint=f"it starts with {start!r}: a web page or a Git LFS pointer instead of the file? download it again",
    )


def _stand_ins(path: Path, container: Container) -> list[Any]:
    """Inert types for all that the pickles name and torch does not make itself, in the order of their names."""
    num_bytes, asked = path.stat().st_size, set[tuple[str, str]]()
    for pickle in _zip_pickles(path) if container == "zip" else _legacy_pickles(path):
        asked |= survey(pickle, num_bytes=num_bytes, where=str(path))
    made = (stand_in(module, name, where=str(path)) for module, name in sorted(asked))
    return [each for each in made if each is not None]


def _zip_pickles(path: Path) -> Iterator[bytes]:
    """The pickles of a zip container, after the check that it holds as much as it declares."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            pickles = [member for member in members if member.filename.lower().endswith("/data.pkl")]
            if not pickles:
                inside = [m.filename for m in members if m.filename.endswith(CHECKPOINT_SUFFIXES)]
                raise WeightsError(
                    "this zip archive is not a checkpoint",
                    where=str(path),
                    hint=f"unpack it and convert {', '.join(filter(str.isprintable, inside[:5]))}"
                    if inside
                    else FETCH_AGAIN,
                )
            packed = [m for m in members if m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size]
            if packed or sum(member.file_size for member in members) > path.stat().st_size:
                raise WeightsError(
                    f"the archive declares {sum(member.file_size for member in members):,} bytes of content and has "
                    f"{path.stat().st_size:,}",
                    where=str(path),
                    hint="torch.save never compresses: do not trust this file",
                )
            for member in pickles:  # all of them, also of one name: torch may take another one than Python
                if member.file_size > MAX_PICKLE_BYTES:
                    raise WeightsError("the checkpoint's pickle is too large", where=f"{path}: {member.filename}")
                yield archive.read(member)
    except WeightsError:
        raise
    except Exception as problem:  # a broken or hostile archive can fail in any way
        raise WeightsError("the checkpoint is damaged", where=str(path), hint=f"{problem}; {FETCH_AGAIN}") from problem


def _legacy_pickles(path: Path) -> Iterator[IO[bytes]]:
    """The file once for each pickle of a container from before torch 1.6, which stands where the last one ended."""
    with path.open("rb") as file:
        for _ in range(LEGACY_PICKLES):
            yield file
            if file.tell() > MAX_PICKLE_BYTES:
                raise WeightsError("the checkpoint's pickle is too large", where=str(path))


def _interpret(path: Path, loaded: Any, *, unknown_types: tuple[str, ...]) -> Checkpoint:  # noqa: ANN401
    if not isinstance(loaded, dict):
        raise WeightsError(f"the checkpoint holds a {type(loaded).__name__}, not a state dict", where=str(path))
    # dict.items: an OrderedDict from a pickle may carry its own `items`
    top = {str(key): value for key, value in dict.items(loaded)}
    container = next((key for key in CONTAINERS if isinstance(top.get(key), dict)), None)
    args, epoch = top.pop("args", None), top.pop("epoch", None)
    state = {str(key): value for key, value in dict.items(top.pop(container) if container else top)}
    rest = top if container else {}
    if odd := [key for key in (*state, *rest) if len(key) > MAX_NAME or not key.isprintable()]:
        raise WeightsError(
            f"{len(odd)} entries of the checkpoint have names that nobody gives: {odd[0][:MAX_NAME]!a}",
            where=str(path),
            hint="is this a file of weights?",
        )
    foreign = [f"{key} ({type(value).__name__})" for key, value in state.items() if not _is_usable(value)]
    if foreign or not state:
        raise WeightsError(
            f"the checkpoint's state dict holds what is no dense tensor: {', '.join(foreign[:5]) or 'nothing at all'}",
            where=str(path),
            hint="is this a file of weights?",
        )
    declared, there = sum(tensor.numel() * tensor.element_size() for tensor in state.values()), path.stat().st_size
    if declared > there:
        raise WeightsError(
            f"the checkpoint's tensors declare {declared:,} bytes, the file has {there:,}",
            where=str(path),
            hint=FETCH_AGAIN,
        )
    if all(key.startswith(DDP_PREFIX) for key in state):
        state = {key.removeprefix(DDP_PREFIX): tensor for key, tensor in state.items()}
    plain_args = _Plain(path).of(args)
    return Checkpoint(
        path=path,
        state={key: tensor.detach() for key, tensor in state.items()},
        args=plain_args if isinstance(plain_args, dict) else {} if args is None else {"args": plain_args},
        epoch=epoch if isinstance(epoch, int) else None,
        dropped=tuple(rest),
        unknown_types=tuple(name for name in unknown_types if name not in NAMESPACES | BUILT_AS.keys()),
    )


def _is_usable(value: object) -> bool:
    """A dense CPU tensor of ordinary numbers."""
    return (
        isinstance(value, Tensor)
        and value.dtype in DTYPES
        and value.layout == torch.strided
        and value.device.type == "cpu"
    )


class _Plain:
    """Training arguments as JSON would have them; anything else becomes text."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_values = 0

    def of(self, value: Any, depth: int = 0) -> Any:  # noqa: ANN401
        self.num_values += 1
        if self.num_values > MAX_ARG_VALUES:  # a few bytes of pickle can describe a list of any size
            raise WeightsError("the checkpoint's args are too large to be settings", where=str(self.path))
        if isinstance(value, Opaque) and value.type_name in NAMESPACES and isinstance(value.state, dict):
            value = value.state
        if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
            return value
        if isinstance(value, str):
            return value[:MAX_ARG_TEXT]
        if isinstance(value, Mapping | list | tuple | set) and depth >= MAX_ARG_DEPTH:
            return "..."
        if isinstance(value, dict):
            return {str(self.of(key, depth + 1)): self.of(item, depth + 1) for key, item in dict.items(value)}
        if isinstance(value, list | tuple | set):
            return [self.of(item, depth + 1) for item in value]
        if isinstance(value, Opaque):
            inside = ", ".join(repr(self.of(item, depth + 1)) for item in value.made_of)
            return f"{value.type_name}({inside})"[:MAX_ARG_TEXT]
        if isinstance(value, type) and issubclass(value, Opaque):
            return value.type_name
        if isinstance(value, Tensor):
            return f"tensor of shape {tuple(value.shape)}"
        if isinstance(value, bytes | torch.device | torch.dtype | float):
            return str(value[:MAX_ARG_TEXT] if isinstance(value, bytes) else value)
        return f"a {type(value).__name__}"


def _reason(problem: BaseException) -> str:
    """The first sentence: torch goes on with advice to allow what the file asks for."""
    return re.split(r"(?<=\.)\s|\n", str(problem).strip() or type(problem).__name__)[0][:MAX_ARG_TEXT]
