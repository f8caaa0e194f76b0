"""Generated and damaged inputs for every surface that reads files or text from outside.

Each surface has one test: it takes valid contents, changes them at random, and calls the public function that reads
them.
The only exception that may come out is a `RefcliError`; no input may take more than 5 CPU seconds or 1 GiB of memory.

    @pytest.mark.parametrize("num_inputs", NUM_INPUTS)
    def test_any_manifest_is_read_or_refused(tmp_path, num_inputs):
        def read(content: bytes) -> None:
            (tmp_path / "manifest.json").write_bytes(content)
            Store(tmp_path).splits()

        fuzz(mutated_json_bytes([VALID_MANIFEST]), read, num_inputs)

200 inputs per surface run by default, 10,000 with `-m slow`. `REFCLI_FUZZ_SEED` chooses another seed.
"""

from __future__ import annotations

import copy
import faulthandler
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from refcli.errors import RefcliError

SEED = int(os.environ.get("REFCLI_FUZZ_SEED", "0"))
NUM_INPUTS = [200, pytest.param(10_000, marks=pytest.mark.slow)]
CPU_SECONDS = 5.0
LOST_SECONDS = 300
"""Wall time after which a loop in C code, which no exception can leave, ends the process with a traceback."""
MAX_GROWTH_BYTES = 1 << 30

Input = TypeVar("Input")

NASTY: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    2**63,
    2**64 + 1,
    10**400,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    " ",
    "0",
    "-1",
    "1e999",
    "nan",
    "é",
    "e\u0301",
    "\ud83d",
    "\x00",
    "\x1b[31m",
    "a\nb",
    ".",
    "..",
    "../../x",
    "/nonexistent/x",
    "a\\b",
    "~",
    "x" * 5000,
    [],
    [None],
    [[]],
    [0, 0, 0, 0],
    [1, 2],
    [1e308, -1e308, 1e308, 1e308],
    ["a"] * 4,
    {},
    {"": None},
    {"size": [1, 1], "counts": "0"},
    {"size": [2**31, 2**31], "counts": [2**62]},
)
"""Values that readers are seldom asked for."""
NASTY_TEXT: tuple[bytes, ...] = (
    b"",
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"null",
    b"[]",
    b"{}",
    b"[" * 2000,
    b'{"a":' * 2000,
    b"9" * 5000,
    b"NaN",
    b"PK\x03\x04",
    b"\x1f\x8b\x08\x00",
    b"\x80\x04.",
    b"---\n",
    b"&a [*a]",
)
"""Contents that replace a file or a piece of it."""


class HangError(BaseException):
    """An input took too much processor time; no `except Exception` of the program can swallow it."""


def fuzz(inputs: st.SearchStrategy[Input], call: Callable[[Input], object], num_inputs: int) -> None:
    """Call a reader with so many generated inputs; fails with the smallest input that breaks a rule."""

    @seed(SEED)
    @settings(
        max_examples=num_inputs,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(inputs)
    def attempt(content: Input) -> None:
        survives(call, content)

    attempt()


def survives(call: Callable[[Input], object], content: Input) -> None:
    """One call: it may succeed or raise a RefcliError, within the limits of time and memory."""
    peak_before = _peak_bytes()
    try:
        with _limited_time():
            call(content)
    except RefcliError as error:
        str(error).encode("utf-8", "surrogatepass")
    except HangError:
        pytest.fail(f"more than {CPU_SECONDS} CPU seconds", pytrace=True)
    grown = _peak_bytes() - peak_before
    assert grown < MAX_GROWTH_BYTES, f"the call took {grown / (1 << 30):.1f} GiB"


@st.composite
def mutated_json(draw: st.DrawFn, documents: Sequence[Any], *, most: int = 3) -> Any:
    """One of the documents with one to `most` values replaced, removed, repeated or renamed."""
    document = copy.deepcopy(draw(st.sampled_from(list(documents))))
    for _ in range(draw(st.integers(1, most))):
        places = list(_places(document))
        if not places:
            return draw(st.sampled_from(NASTY))
        parent, key = draw(st.sampled_from(places))
        _mutate(draw, parent, key)
    return document


def mutated_json_bytes(documents: Sequence[Any], *, most: int = 3) -> st.SearchStrategy[bytes]:
    """The same as the bytes of a file, at times damaged as bytes, too."""
    intact = mutated_json(documents, most=most).map(_to_bytes)
    return st.one_of(intact, intact, intact.flatmap(lambda content: damaged([content])))


@st.composite
def mutated_lines(draw: st.DrawFn, records: Sequence[Any]) -> bytes:
    """JSON lines: mostly valid records among changed and damaged ones."""
    good = st.sampled_from(list(records)).map(_to_bytes)
    line = st.one_of(
        good, mutated_json(records).map(_to_bytes), st.sampled_from(NASTY_TEXT), damaged(map_bytes(records))
    )
    return b"\n".join(draw(st.lists(line, min_size=1, max_size=5))) + draw(st.sampled_from((b"", b"\n", b"\r\n")))


@st.composite
def damaged(draw: st.DrawFn, contents: Sequence[bytes]) -> bytes:
    """One of the contents with bytes changed, cut out, put in, or the end cut off."""
    content = bytearray(draw(st.sampled_from(list(contents))))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        length = draw(st.integers(1, 16))
        match draw(st.sampled_from(("change", "cut", "put in", "cut off", "replace all"))):
            case "change":
                content[at : at + length] = draw(st.binary(min_size=1, max_size=length))
            case "cut":
                del content[at : at + length]
            case "put in":
                content[at:at] = draw(st.sampled_from(NASTY_TEXT))
            case "cut off":
                del content[at:]
            case "replace all":
                if draw(st.integers(0, 9)) == 0:
                    content[:] = draw(st.sampled_from(NASTY_TEXT))
    return bytes(content)


def map_bytes(documents: Sequence[Any]) -> list[bytes]:
    """Documents as the bytes of JSON files."""
    return [_to_bytes(document) for document in documents]


def _to_bytes(document: Any) -> bytes:
    return json.dumps(document).encode("utf-8")


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value."""
    if isinstance(document, dict):
        items: Sequence[tuple[Any, Any]] = list(document.items())
    elif isinstance(document, list):
        items = list(enumerate(document))
    else:
        return
    for key, value in items:
        yield document, key
        yield from _places(value)


def _mutate(draw: st.DrawFn, parent: Any, key: Any) -> None:
    kind = draw(st.sampled_from(("replace", "replace", "replace", "remove", "repeat", "rename", "wrap", "text")))
    value = parent[key]
    match kind:
        case "replace":
            parent[key] = copy.deepcopy(draw(st.sampled_from(NASTY)))
        case "remove":
            del parent[key]
        case "repeat" if isinstance(parent, list):
            parent.insert(key, copy.deepcopy(value))
        case "rename" if isinstance(parent, dict):
            parent[draw(st.sampled_from(("", "x", str(key).upper(), "\ud83d")))] = parent.pop(key)
        case "wrap":
            parent[key] = [value]
        case _:
            parent[key] = str(value)


@contextmanager
def _limited_time() -> Iterator[None]:
    def leave(*_: object) -> NoReturn:
        raise HangError

    before = signal.signal(signal.SIGVTALRM, leave)
    faulthandler.dump_traceback_later(LOST_SECONDS, exit=True, file=sys.__stderr__)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGVTALRM, before)


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
