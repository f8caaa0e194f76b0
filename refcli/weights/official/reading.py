"""Read official PyTorch checkpoints as tensors and plain data, without executing anything in the file."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from torch import Tensor

from refcli.data.reading.torch_files import FETCH_AGAIN, Container, container_of, survey_torch_file
from refcli.errors import WeightsError
from refcli.files import file_sha256

CONTAINERS = (
    "model", "model_state_dict", "module", "state_dict", "net", "network", "weights", "params",
    "ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "params_ema", "teacher", "student",
)  # fmt: skip
"""Keys that may hold a checkpoint's tensors: first in the order of the official loaders, then those of other
programs, averages last. Without any of them the top level holds the tensors."""
MAX_CONTAINERS = 4
"""How deep they may be nested."""
WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Parts that PyTorch's wrappers add to names: in front of all of them, or of those of a wrapped part."""
AVERAGED_COUNT = "n_averaged"
"""A counter in the state dict of PyTorch's AveragedModel."""
MAX_NAME = 200
"""Characters in the name of a tensor; the longest published one has 56."""
MAX_ARG_VALUES, MAX_ARG_DEPTH, MAX_ARG_TEXT = 20_000, 8, 2_000
DTYPES = frozenset(
    {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64, torch.uint8, torch.bool}
)


@dataclass(frozen=True)
class Checkpoint:
    """An official training checkpoint without its optimiser."""

    path: Path
    state: dict[str, Tensor]
    """Official name -> tensor on the CPU, memory-mapped from the file.

    Files that torch.save wrote before 1.6 are read into memory completely, with the optimiser's tensors.
    """
    args: dict[str, Any]
    """The training arguments as plain data; empty if the file has none."""
    epoch: int | None
    dropped: tuple[str, ...]
    """Top-level entries that are not part of the model, such as `optimizer`."""
    unknown_types: tuple[str, ...]
    """Unknown types named in the file, which were not built; in `args` they are text."""
    notes: tuple[str, ...] = ()
    """Where the tensors were found, and what was removed from their names."""

    @cached_property
    def source_sha256(self) -> str:
        """The sha256 of the file, in hex; computed on first use."""
        return file_sha256(self.path)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read an official checkpoint: a `.pth` file, or a state dict as safetensors.

    Pickles are surveyed first, and refused if they would do harm or expand without bound. Then torch's restricted
    unpickler reads the tensors. Types that it does not know are replaced by inert stand-ins, so that the training
    arguments can be read.

    Raises:
        UsageError: no such file.
        WeightsError: a damaged, oversized or hostile file, or one without a state dict.
    """
    container = container_of(path, error=WeightsError)
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
    except Exception as problem:  # a damaged or hostile file can fail in any way
        raise WeightsError(
            "the checkpoint cannot be read as tensors and plain data",
            where=str(path),
            hint=_reason(problem.__context__ or problem),  # torch wraps the cause in advice to load the file unsafely
        ) from problem


def _stand_ins(path: Path, container: Container) -> list[Any]:
    """Inert types for all names in the pickles that torch does not build itself, sorted."""
    found = survey_torch_file(path, container, error=WeightsError)
    made = (stand_in(module, name, where=str(path)) for module, name in sorted(found.names))
    return [each for each in made if each is not None]


def _interpret(path: Path, loaded: Any, *, unknown_types: tuple[str, ...]) -> Checkpoint:  # noqa: ANN401
    if not isinstance(loaded, dict):
        raise WeightsError(f"the checkpoint holds a {type(loaded).__name__}, not a state dict", where=str(path))
    # dict.items: an OrderedDict from a pickle may carry its own `items`
    top = {str(key): value for key, value in dict.items(loaded)}
    args, epoch = top.pop("args", None), top.pop("epoch", None)
    state, rest, containers = _find_state(top)
    if odd := [key for key in (*state, *rest) if len(key) > MAX_NAME or not key.isprintable()]:
        raise WeightsError(
            f"{len(odd)} entries of the checkpoint have implausible names: {odd[0][:MAX_NAME]!a}",
            where=str(path),
            hint="check that this is a weights file",
        )
    foreign = [f"{key} ({type(value).__name__})" for key, value in state.items() if not _is_usable(value)]
    if foreign or not state:
        raise WeightsError(
            "the checkpoint's state dict holds something other than dense tensors: "
            f"{', '.join(foreign[:5]) or 'nothing at all'}",
            where=str(path),
            hint="check that this is a weights file",
        )
    declared, there = sum(tensor.numel() * tensor.element_size() for tensor in state.values()), path.stat().st_size
    if declared > there:
        raise WeightsError(
            f"the checkpoint's tensors declare {declared:,} bytes, the file has {there:,}",
            where=str(path),
            hint=FETCH_AGAIN,
        )
    notes: tuple[str, ...] = (f"the tensors are those under {'.'.join(containers)}",) if len(containers) > 1 else ()
    state, wrappers = _without_wrappers(state)
    if wrappers:
        notes += (f"removed from the names: {', '.join(wrappers)}",)
    plain_args = _Plain(path).of(args)
    return Checkpoint(
        path=path,
        state={key: tensor.detach() for key, tensor in state.items()},
        args=plain_args if isinstance(plain_args, dict) else {} if args is None else {"args": plain_args},
        epoch=epoch if isinstance(epoch, int) else None,
        dropped=tuple(rest),
        unknown_types=tuple(name for name in unknown_types if name not in NAMESPACES | BUILT_AS.keys()),
        notes=notes,
    )


def _find_state(top: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]:
    """The state dict of a checkpoint, its other entries, and the keys on the way to it."""
    state, rest, containers = top, dict[str, Any](), tuple[str, ...]()
    while len(containers) < MAX_CONTAINERS:
        key = next((key for key in (*CONTAINERS, *_only_dict(state)) if isinstance(state.get(key), dict)), None)
        if key is None:
            break
        others = {".".join((*containers, name)): value for name, value in state.items() if name != key}
        rest, containers = {**rest, **others}, (*containers, key)
        state = {str(name): value for name, value in dict.items(state[key])}
    return state, rest, containers


def _only_dict(state: dict[str, Any]) -> list[str]:
    """The name of the only entry that is a dict of tensors; empty if there is none, or more than one."""
    found = [
        name
        for name, value in state.items()
        if isinstance(value, dict) and value and all(isinstance(each, Tensor) for each in dict.values(value))
    ]
    return found if len(found) == 1 else []


def _without_wrappers(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors under their names without PyTorch's wrappers, and what was removed.

    The names stay as they are if two of them would become equal.
    """
    count = state.get(AVERAGED_COUNT)
    is_averaged = count is not None and count.numel() == 1 and len(state) > 1
    plain = {name: tensor for name, tensor in state.items() if not (is_averaged and name == AVERAGED_COUNT)}
    taken: list[str] = []
    names = {name: name for name in plain}
    while prefix := next((each for each in WRAPPERS if all(name.startswith(each) for name in names.values())), None):
        names = {name: short.removeprefix(prefix) for name, short in names.items()}
        taken.append(prefix)
    for wrapper in WRAPPERS[1:]:
        if any(f".{wrapper}" in short or short.startswith(wrapper) for short in names.values()):
            names = {name: short.replace(f".{wrapper}", ".").removeprefix(wrapper) for name, short in names.items()}
            taken.append(wrapper)
    if not taken or len(set(names.values())) < len(names):
        return state, ()
    return {names[name]: tensor for name, tensor in plain.items()}, tuple(dict.fromkeys(taken))


def _is_usable(value: object) -> bool:
    """Whether the value is a dense CPU tensor of an ordinary type."""
    return (
        isinstance(value, Tensor)
        and value.dtype in DTYPES
        and value.layout == torch.strided
        and value.device.type == "cpu"
    )


class _Plain:
    """Converts training arguments to JSON-like values; other values become text."""

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
            inside = ", ".join(repr(self.of(item, depth + 1)) for item in value.arguments)
            return f"{value.type_name}({inside})"[:MAX_ARG_TEXT]
        if isinstance(value, type) and issubclass(value, Opaque):
            return value.type_name
        if isinstance(value, Tensor):
            return f"tensor of shape {tuple(value.shape)}"
        if isinstance(value, bytes | torch.device | torch.dtype | float):
            return str(value[:MAX_ARG_TEXT] if isinstance(value, bytes) else value)
        return f"a {type(value).__name__}"


def _reason(problem: BaseException) -> str:
    """The first sentence of the message: torch adds advice to allow what the file asks for."""
    return re.split(r"(?<=\.)\s|\n", str(problem).strip() or type(problem).__name__)[0][:MAX_ARG_TEXT]


NAMESPACES = frozenset({"argparse.Namespace", "types.SimpleNamespace"})
"""Types that only hold named values."""
BUILT_AS: dict[str, type] = {"collections.defaultdict": dict, "collections.deque": list}
"""Types whose stand-ins are plain containers, because torch adds items to no others."""
PLAIN_MODULES = frozenset(
    {"__main__", "argparse", "collections", "datetime", "decimal", "enum", "fractions", "pathlib", "uuid"}
)
PLAIN_BUILTINS = frozenset(
    "bool bytes dict float frozenset int list object range slice str tuple".split()  # noqa: SIM905
)
PLAIN_NAMES = frozenset(
    {"types.SimpleNamespace", "functools.partial", *(f"builtins.{name}" for name in PLAIN_BUILTINS)}
)
"""With the two sets above, all of the standard library that a checkpoint may name, besides what torch builds."""
TORCH_BUILDS = frozenset(
    {"collections.OrderedDict", "collections.Counter", "_codecs.encode"}
    | {f"builtins.{name}" for name in ("set", "bytearray", "complex")}
    | {f"torch.{name}" for name in ("Size", "Tensor", "device", "nn.parameter.Parameter", "serialization._get_layout")}
    | {f"torch._utils._rebuild_{name}" for name in ("tensor", "tensor_v2", "tensor_v3", "parameter")}
    | {"torch._utils._rebuild_parameter_with_state", "torch._utils._rebuild_meta_tensor_no_storage"}
    | {"torch._tensor._rebuild_from_type_v2"}
)
TORCH_STORAGE = re.compile(r"torch\.(storage\.|cuda\.)?\w+Storage")
TORCH_REBUILDS = frozenset({"torch._utils", "torch._tensor"})
"""Modules of functions that torch calls itself; those that are not in `TORCH_BUILDS` build no dense tensors."""


class Opaque:
    """An object of an unknown type: its type's name, its arguments and its state, without behaviour."""

    type_name: ClassVar[str]
    arguments: tuple[Any, ...]
    state: Any = None

    def __new__(cls, *arguments: Any) -> Any:  # noqa: ANN401 - anything that the file contains
        if cls.type_name in BUILT_AS:
            return BUILT_AS[cls.type_name]()
        made = super().__new__(cls)
        made.arguments = arguments
        return made

    def __setstate__(self, state: Any) -> None:  # noqa: ANN401
        self.state = state


def stand_in(module: str, name: str, *, where: str) -> type[Opaque] | None:
    """An inert type that torch's restricted unpickler uses as `module.name`, which is not imported.

    None for a type that the unpickler builds itself.

    Raises:
        WeightsError: a name of the standard library or of torch that data never needs.
    """
    full_name = f"{module}.{name}"
    if full_name in TORCH_BUILDS or TORCH_STORAGE.fullmatch(full_name) or _is_dtype(module, name):
        return None
    if module in TORCH_REBUILDS:
        raise WeightsError(f"the checkpoint holds tensors that are not dense: it asks for {full_name!a}", where=where)
    root = module.split(".")[0]
    is_plain = root not in sys.stdlib_module_names or root in PLAIN_MODULES or full_name in PLAIN_NAMES
    if not is_plain or not full_name.replace(".", "").isidentifier():
        raise WeightsError(
            f"the checkpoint asks for {full_name[:200]!a}, which no checkpoint needs",
            where=where,
            hint="nothing was executed; do not load this file with other programs",
        )
    return type(name, (Opaque,), {"__module__": module, "__qualname__": name, "type_name": full_name})


def _is_dtype(module: str, name: str) -> bool:
    return module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
