"""What a checkpoint names: types that torch makes itself, inert stand-ins for all others, and what only does harm."""

from __future__ import annotations

import re
import sys
from typing import Any, ClassVar

import torch

from refcli.errors import WeightsError

NAMESPACES = frozenset({"argparse.Namespace", "types.SimpleNamespace"})
"""Types that are nothing but named values."""
BUILT_AS: dict[str, type] = {"collections.defaultdict": dict, "collections.deque": list}
"""Types whose stand-ins are plain containers: torch fills no others."""
PLAIN_MODULES = frozenset(
    {"__main__", "argparse", "collections", "datetime", "decimal", "enum", "fractions", "pathlib", "uuid"}
)
PLAIN_BUILTINS = frozenset(
    "bool bytes dict float frozenset int list object range slice str tuple".split()  # noqa: SIM905
)
PLAIN_NAMES = frozenset(
    {"types.SimpleNamespace", "functools.partial", *(f"builtins.{name}" for name in PLAIN_BUILTINS)}
)
"""The only parts of the standard library that a checkpoint may name, apart from what torch itself makes."""
TORCH_MAKES = frozenset(
    {"collections.OrderedDict", "collections.Counter", "_codecs.encode"}
    | {f"builtins.{name}" for name in ("set", "bytearray", "complex")}
    | {f"torch.{name}" for name in ("Size", "Tensor", "device", "nn.parameter.Parameter", "serialization._get_layout")}
    | {f"torch._utils._rebuild_{name}" for name in ("tensor", "tensor_v2", "tensor_v3", "parameter")}
    | {"torch._utils._rebuild_parameter_with_state", "torch._utils._rebuild_meta_tensor_no_storage"}
    | {"torch._tensor._rebuild_from_type_v2"}
)
TORCH_STORAGE = re.compile(r"torch\.(storage\.|cuda\.)?\w+Storage")
TORCH_REBUILDS = frozenset({"torch._utils", "torch._tensor"})
"""Modules of functions that torch would call itself: the others of them make no dense tensors."""


class Opaque:
    """An object of a type that is not known here: its name and what it was made of, and no behaviour."""

    type_name: ClassVar[str]
    made_of: tuple[Any, ...]
    state: Any = None

    def __new__(cls, *made_of: Any) -> Any:  # noqa: ANN401 - whatever the file says
        if cls.type_name in BUILT_AS:
            return BUILT_AS[cls.type_name]()
        made = super().__new__(cls)
        made.made_of = made_of
        return made

    def __setstate__(self, state: Any) -> None:  # noqa: ANN401
        self.state = state


def stand_in(module: str, name: str, *, where: str) -> type[Opaque] | None:
    """An inert type that torch's restricted unpickler takes for `module.name`; neither is imported.

    None for what the unpickler makes itself.

    Raises:
        WeightsError: nothing that data needs, as far as the standard library and torch are concerned.
    """
    full_name = f"{module}.{name}"
    if full_name in TORCH_MAKES or TORCH_STORAGE.fullmatch(full_name) or _is_dtype(module, name):
        return None
    if module in TORCH_REBUILDS:
        raise WeightsError(
            f"the checkpoint holds tensors of another kind than dense ones: it asks for {full_name!a}", where=where
        )
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
