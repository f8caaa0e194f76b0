"""Official PyTorch checkpoints become tensors and plain data, and nothing in the file is ever executed."""

from __future__ import annotations

import math
import pickletools
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, ClassVar

import torch
from torch import Tensor

from refcli.errors import WeightsError
from refcli.files import file_sha256

CONTAINERS = ("model", "model_state_dict", "module", "state_dict")
"""Keys under which a checkpoint holds its tensors, in the order of the official loaders; else it is all tensors."""
DDP_PREFIX = "module."
NAMESPACE = "argparse.Namespace"
PLAIN_MODULES = frozenset({"argparse", "pathlib", "datetime", "decimal", "fractions", "uuid", "enum", "__main__"})
PLAIN_BUILTINS = frozenset(f"builtins.{name}" for name in ("bytes", "frozenset", "object", "range", "slice"))
"""The only parts of the standard library whose types a checkpoint may name, apart from what torch itself allows."""
TORCH_ALLOWS = frozenset(
    {"collections.OrderedDict", "collections.Counter", "_codecs.encode"}
    | {f"builtins.{name}" for name in ("set", "bytearray", "complex")}
)
ZIP_START, PICKLE_START = b"PK\x03\x04", b"\x80"
LEGACY_PICKLES = 5
"""Magic number, protocol, system, object, storage keys: then the raw tensors follow."""
MAX_PICKLE_BYTES = 64 << 20
"""A thousand tensors with optimiser state are described in under 1 MiB."""
MAX_NAME = 200
"""Letters in the name of a tensor; the longest published one has 56."""
MAX_ARG_VALUES, MAX_ARG_DEPTH, MAX_ARG_TEXT = 20_000, 8, 2_000
DTYPES = frozenset(
    {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64, torch.uint8, torch.bool}
)
FETCH_AGAIN = "the file may be cut off or not be a checkpoint at all: download it again"


class Opaque:
    """An object of a type that is not known here: its name and what it was made of, and no behaviour."""

    type_name: ClassVar[str]
    made_of: tuple[Any, ...]
    state: Any = None

    def __new__(cls, *made_of: Any) -> Opaque:  # noqa: ANN401 - whatever the file says
        made = super().__new__(cls)
        made.made_of = made_of
        return made

    def __setstate__(self, state: Any) -> None:  # noqa: ANN401
        self.state = state


@dataclass(frozen=True)
class Checkpoint:
    """What an official training checkpoint holds besides its optimiser."""

    path: Path
    state: dict[str, Tensor]
    """Official name -> tensor on the CPU; mapped from the file where its format allows."""
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
    """Read a `.pth` file of the OneRef, BEiT-3 or VQ-KD kind.

    Tensors are read by torch's restricted unpickler. Types that it does not know are replaced by inert stand-ins, so
    that training arguments can be told; names that could only do harm are refused.

    Raises:
        WeightsError: missing, damaged, oversized or hostile file, or one that holds no state dict.
    """
    if not path.is_file():
        raise WeightsError("there is no such checkpoint file", where=str(path))
    is_zip = _is_zip(path)
    pickles = _zip_pickles(path) if is_zip else _legacy_pickles(path)
    stand_ins: list[Any] = [
        _stand_in(module, name, path) for module, name in sorted(set(_unknown_globals(pickles, path)))
    ]
    try:
        with torch.serialization.safe_globals(stand_ins):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        return _interpret(path, loaded, unknown_types=tuple(each.type_name for each in stand_ins))
    except WeightsError:
        raise
    except Exception as problem:  # a broken or hostile pickle can fail in any way
        raise WeightsError(
            "the checkpoint cannot be read as tensors and plain data",
            where=str(path),
            hint=_first_line(problem.__context__ or problem),  # torch wraps the cause in advice to read it unsafely
        ) from problem


def _is_zip(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as problem:
        raise WeightsError("the checkpoint file cannot be read", where=str(path), hint=str(problem)) from problem
    if start != ZIP_START and not start.startswith(PICKLE_START):
        raise WeightsError(
            "this is not a PyTorch checkpoint",
            where=str(path),
            hint=f"it starts with {start!r}: a web page or a Git LFS pointer instead of the file? download it again",
        )
    return start == ZIP_START


def _zip_pickles(path: Path) -> Iterator[bytes]:
    """The pickles of a zip container, after the check that it holds as much as it declares."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members if member.filename.endswith("/data.pkl")]
            if not names:
                inside = [m.filename for m in members if m.filename.endswith((".pth", ".pt", ".bin"))]
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
            for name in names:
                if archive.getinfo(name).file_size > MAX_PICKLE_BYTES:
                    raise WeightsError("the checkpoint's pickle is too large", where=f"{path}: {name}")
                yield archive.read(name)
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


def _unknown_globals(pickles: Iterable[bytes | IO[bytes]], path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of every type in the pickles that torch's unpickler would have to be told about."""
    for pickle in pickles:
        try:
            found = [arg for opcode, arg, _ in pickletools.genops(pickle) if opcode.name == "GLOBAL"]
        except Exception as problem:  # a broken pickle can fail in any way
            raise WeightsError(
                "the checkpoint is damaged", where=str(path), hint=f"{_first_line(problem)}; {FETCH_AGAIN}"
            ) from problem
        for module, name in (str(arg).split(" ", 1) for arg in found):
            # Python 2 names, as torch translates them
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
            if f"{module}.{name}" not in TORCH_ALLOWS and module.split(".")[0] != "torch":
                yield module, name


def _stand_in(module: str, name: str, path: Path) -> type[Opaque]:
    """An inert type that torch's unpickler takes for `module.name`; neither is imported."""
    root, full_name = module.split(".")[0], f"{module}.{name}"
    is_plain = root not in sys.stdlib_module_names or root in PLAIN_MODULES or full_name in PLAIN_BUILTINS
    if not is_plain or not full_name.replace(".", "").isidentifier():
        raise WeightsError(
            f"the checkpoint asks for {full_name!r}, which no checkpoint needs",
            where=str(path),
            hint="nothing was executed; do not load this file with other programs",
        )
    return type(name, (Opaque,), {"__module__": module, "__qualname__": name, "type_name": full_name})


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
        unknown_types=tuple(name for name in unknown_types if name != NAMESPACE),
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
        if isinstance(value, Opaque) and value.type_name == NAMESPACE and isinstance(value.state, dict):
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
        if isinstance(value, Tensor):
            return f"tensor of shape {tuple(value.shape)}"
        if isinstance(value, bytes | torch.device | torch.dtype | float):
            return str(value[:MAX_ARG_TEXT] if isinstance(value, bytes) else value)
        return f"a {type(value).__name__}"


def _first_line(problem: BaseException) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0][:MAX_ARG_TEXT]
