"""What a user wants to know: requests from files, folders, globs and JSON lines."""

from __future__ import annotations

import glob
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from refcli.errors import UsageError
from refcli.tables import nearest

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
REQUEST_SUFFIXES = frozenset({".jsonl", ".ndjson"})
STDIN = "-"

ImageSource: TypeAlias = str | Path | bytes | np.ndarray | Image.Image
"""A path, an encoded file, RGB uint8 pixels [height, width, 3], or a Pillow image."""


def identity(source: ImageSource) -> str | int:
    """The same for two sources only if they are one picture: its path, or the object while somebody holds it."""
    return str(source) if isinstance(source, str | Path) else id(source)


@dataclass(frozen=True)
class Request:
    """One expression about one image."""

    id: str
    image: str
    """The image as the user named it; it is echoed in the answer."""
    expression: str
    source: ImageSource | None = None
    """What is opened; None means the file called `image`."""
    error: str | None = None
    """Set where the request itself is malformed; it is answered with this error."""


def read_requests(
    inputs: Sequence[str], expressions: Sequence[str] = (), request_files: Sequence[str] = ()
) -> Iterator[Request]:
    """Turn command-line inputs into requests, in order, one line at a time.

    Args:
        inputs: image files, folders (searched recursively, sorted), globs, request files (`.jsonl`), or `-` (request
            lines on stdin).
        expressions: asked of every image, and of every request line that has no expression of its own.
        request_files: further files of request lines, whatever their suffix, or `-`.

    Raises:
        UsageError: an input that can never give a request. Everything else becomes a request with `error`.
    """
    plans = [(name, None if _is_request_file(name) else expand_images(name)) for name in inputs]
    plans += [(name, None) for name in request_files]
    if not plans:
        raise UsageError("there is nothing to look at", hint="give an image, a folder, a request file or -")
    if sum(name == STDIN for name, _ in plans) > 1:
        raise UsageError("stdin can be read only once", where=STDIN)
    for name, images in plans:
        if images is None and name != STDIN and not Path(name).is_file():
            raise UsageError("there is no such request file", where=name)
    if not expressions and any(images is not None for _, images in plans):
        raise UsageError("there is no expression to look for", hint='say what you mean: -e "the red mug on the left"')
    return _requests(plans, expressions)


def _requests(plans: Iterable[tuple[str, list[str] | None]], expressions: Sequence[str]) -> Iterator[Request]:
    for name, images in plans:
        if images is None:
            yield from read_request_file(name, expressions)
        else:
            for image in images:
                yield from _ask(image, None, expressions, image)


def _is_request_file(name: str) -> bool:
    return name == STDIN or Path(name).suffix.lower() in REQUEST_SUFFIXES


def expand_images(name: str) -> list[str]:
    """The image files that one command-line input stands for.

    Raises:
        UsageError: an empty folder, or a pattern that matches nothing.
    """
    path = Path(name)
    if path.is_dir():
        found = sorted(str(file) for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise UsageError(
                "the folder holds no images", where=name, hint="known suffixes: " + " ".join(sorted(IMAGE_SUFFIXES))
            )
        return found
    if not path.exists() and glob.has_magic(name):
        matches = glob.glob(name, recursive=True)  # noqa: PTH207 (Path.glob refuses absolute patterns)
        found = sorted(match for match in matches if Path(match).is_file())
        if not found:
            raise UsageError("the pattern matches no file", where=name)
        return found
    return [name]


def read_request_file(name: str, expressions: Sequence[str] = ()) -> Iterator[Request]:
    """Stream requests from a file of JSON lines, or from stdin for `-`.

    A line is `{"image": path, "expression": text}` or `{"image": path, "expressions": [text, ...]}`, optionally with an
    `"id"`; other keys are left alone, blank lines are skipped. Relative paths are looked for in the current
    directory first, then beside the file. A malformed line becomes a request with `error`.

    Raises:
        UsageError: the file cannot be read.
    """
    if name == STDIN:
        # Not sys.stdin.buffer: a thread that waits in it when the program ends would make the interpreter abort.
        with open(sys.stdin.fileno(), "rb", closefd=False) as lines:
            yield from parse_request_lines(lines, "<stdin>", None, expressions)
        return
    try:
        with Path(name).open("rb") as lines:
            yield from parse_request_lines(lines, name, Path(name).parent, expressions)
    except OSError as error:
        raise UsageError(f"the request file cannot be read: {error.strerror}", where=name) from error


def parse_request_lines(
    lines: Iterable[bytes], name: str, folder: Path | None, expressions: Sequence[str] = ()
) -> Iterator[Request]:
    """Requests of JSON lines; `name` is how errors call the file, `folder` where its relative paths may start."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield from _parse_line(line, f"{name}:{number}", folder, expressions)


def _parse_line(line: bytes, where: str, folder: Path | None, expressions: Sequence[str]) -> Iterator[Request]:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        yield _malformed(where, f"not a line of JSON ({error})")
        return
    if not isinstance(record, dict):
        yield _malformed(where, 'a request is an object like {"image": ..., "expression": ...}')
        return
    image = record.get("image")
    if not isinstance(image, str) or not image:
        yield _malformed(where, '"image" must be the path of an image' + _typo("image", record))
        return
    ident = where if record.get("id") is None else str(record["id"])
    asked = _expressions_of(record, expressions)
    if isinstance(asked, str):
        yield _malformed(where, asked, ident=ident, image=image)
        return
    yield from _ask(image, _locate(image, folder), asked, ident, numbered="expressions" in record)


def _expressions_of(record: dict[str, object], default: Sequence[str]) -> Sequence[str] | str:
    """The expressions that a request line asks for, or what is wrong with them."""
    if "expression" in record and "expressions" in record:
        return 'give "expression" or "expressions", not both'
    if "expression" in record:
        one = record["expression"]
        return [one] if isinstance(one, str) else '"expression" must be a string'
    if "expressions" in record:
        many = record["expressions"]
        if isinstance(many, list) and many and all(isinstance(one, str) for one in many):
            return many
        return '"expressions" must be a list of strings'
    return default or '"expression" is missing' + _typo("expression", record)


def _typo(key: str, record: dict[str, object]) -> str:
    guess = nearest(key, [str(known) for known in record])
    return f" (is {guess!r} a typo?)" if guess and guess != key else ""


def _malformed(where: str, message: str, *, ident: str | None = None, image: str = "") -> Request:
    return Request(id=ident or where, image=image, expression="", error=f"{where}: {message}")


def _locate(image: str, folder: Path | None) -> Path:
    """The file that a request line means: in the current directory if it is there, else beside the request file."""
    path = Path(image)
    if folder is not None and not path.is_absolute() and not path.exists() and (folder / path).exists():
        return folder / path
    return path


def _ask(
    image: str, source: Path | None, expressions: Sequence[str], ident: str, *, numbered: bool | None = None
) -> Iterator[Request]:
    """One request per expression; ids get a number where one name has several expressions."""
    several = len(expressions) > 1 if numbered is None else numbered or len(expressions) > 1
    for number, expression in enumerate(expressions):
        yield Request(f"{ident}#{number}" if several else ident, image, expression, source)
