"""YAML from users and downloaded files: plain values of bounded size, or an error in one sentence."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Any

import yaml

from refcli.errors import ConfigError, RefcliError

MAX_CHARACTERS = 1 << 17
"""The longest file in refcli has 21 thousand."""
MAX_VALUES, MAX_DEPTH = 10_000, 32
"""Values and keys, an alias counted as everything that it stands for; the same file has 2,700."""
MAX_BITS = 64
"""Maximum size of a whole number."""
_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map", "merge")
)
_TEXT, _WHOLE, _TIMESTAMP, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("str", "int", "timestamp", "merge"))


def parse_yaml(
    text: str, *, what: str, where: str, error: type[RefcliError] = ConfigError, numbered_keys: bool = False
) -> Any:  # noqa: ANN401
    """The plain value of a YAML text: mappings with text as keys, lists, text, numbers of 64 bits, booleans and null.

    `1e-4` is a number, and dates are text.

    Args:
        what: the subject of the error message, such as "the settings file".
        error: the class of the error.
        numbered_keys: also read whole numbers as keys, as text.

    Raises:
        RefcliError: not YAML, a value of another kind, a repeated key, or more values than any settings have.
    """
    if len(text) > MAX_CHARACTERS:
        raise error(f"{what} has {len(text):,} characters, and at most {MAX_CHARACTERS:,} are read", where=where)
    loader = None
    try:
        loader = _Loader(text, numbered_keys=numbered_keys)
        return loader.get_single_data()
    except Exception as problem:  # PyYAML's constructors raise whatever the values lead them to
        reason = " ".join(str(problem).split()) or type(problem).__name__
        raise error(f"{what} is not YAML: {reason[:1000]}", where=where) from problem
    finally:
        if loader is not None:
            loader.dispose()


def read_mapping(
    path: Path, *, what: str = "the settings file", error: type[RefcliError] = ConfigError
) -> dict[str, Any]:
    """The mapping in a YAML file, see `parse_yaml`.

    Raises:
        RefcliError: missing, not a regular file, not such YAML, or not a mapping at the top.
    """
    where = str(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise error(f"{what} is not a regular file", where=where)
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except FileNotFoundError as problem:
        raise error(f"there is no such {what.removeprefix('the ')}", where=where) from problem
    except (OSError, ValueError) as problem:  # also for a name that contains a null character
        raise error(f"{what} cannot be read: {problem}", where=where) from problem
    values = parse_yaml(text, what=what, where=where, error=error)
    if not isinstance(values, dict):
        raise error(f"{what} is not a mapping of keys to values", where=where)
    return values


class _Loader(yaml.SafeLoader):
    """Composes at most as much as the limits allow and constructs only plain values."""

    def __init__(self, text: str, *, numbered_keys: bool = False) -> None:
        super().__init__(text)
        self.key_tags = frozenset({_TEXT, _WHOLE} if numbered_keys else {_TEXT})
        self._depth = self._num_values = 0
        self._sizes: dict[str, int] = {}
        """The number of values behind each complete anchor."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401
        event = self.peek_event()  # type: ignore[no-untyped-call]
        anchor: str | None = getattr(event, "anchor", None)
        is_alias = isinstance(event, yaml.AliasEvent)
        if is_alias and anchor in self.anchors and anchor not in self._sizes:
            raise yaml.YAMLError(f"{anchor!r} refers to itself")
        before = self._num_values
        self._num_values += self._sizes.get(anchor or "", 1) if is_alias else 1
        self._depth += 1
        if self._depth > MAX_DEPTH or self._num_values > MAX_VALUES:
            raise yaml.YAMLError("it has more values, or deeper nesting, than settings ever need")
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        if anchor is not None and not is_alias:
            self._sizes[anchor] = self._num_values - before
        if node is not None and node.tag not in _TAGS:
            raise yaml.YAMLError(f"the tag {node.tag!r} is not allowed: values are plain")
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: ANN401
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, ArithmeticError) as problem:
            sort = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"{str(node.value)[:80]!r} is not a valid {sort}", node.start_mark
            ) from problem


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    seen: set[str] = set()
    for key_node, _ in node.value:
        if key_node.tag == _MERGE:
            continue
        if key_node.tag not in loader.key_tags or not isinstance(key_node, yaml.ScalarNode):
            shown = f"{key_node.value[:80]!r}" if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
            raise yaml.constructor.ConstructorError(
                None, None, f"keys must be text, and {shown} is not: put it in quotes", key_node.start_mark
            )
        if key_node.value in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key_node.value!r} is given twice", key_node.start_mark
            )
        seen.add(key_node.value)
    return {str(key): value for key, value in yaml.SafeLoader.construct_mapping(loader, node, deep=True).items()}


def _whole(loader: _Loader, node: yaml.ScalarNode) -> int:
    if len(node.value) > 2 * MAX_BITS:
        raise yaml.constructor.ConstructorError(None, None, "a number with too many digits", node.start_mark)
    value = int(yaml.SafeLoader.construct_yaml_int(loader, node))
    if value.bit_length() > MAX_BITS:
        raise yaml.constructor.ConstructorError(
            None, None, f"{node.value} is a number of more than {MAX_BITS} bits", node.start_mark
        )
    return value


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _whole)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
