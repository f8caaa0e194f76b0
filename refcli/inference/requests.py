"""Requests: one expression about one image, from files, folders, globs and JSON lines."""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

from refcli.errors import DataError, UsageError
from refcli.inference.image_folders import Skipped, file_mode, files_matching, images_below, is_folder
from refcli.inference.image_sources import ImageSource
from refcli.tables import nearest

REQUEST_SUFFIXES = frozenset({".jsonl", ".ndjson"})
STDIN = "-"
MAX_DIGITS = 4000
"""Maximum length of a number in a request line: Python's own limit can be switched off."""
_GZIP = b"\x1f\x8b"
_SURROGATE = re.compile("[\ud800-\udfff]")
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


@dataclass(frozen=True)
class Request:
    """One expression about one image."""

    id: str
    image: str
    """The image as the user named it; the answer repeats it."""
    expression: str
    source: ImageSource | None = None
    """The image to open; None: the file called `image`."""
    error: str | None = None
    """The reason if the request itself is malformed; its answer has this error."""


@dataclass(frozen=True)
class LineLimits:
    """Limits on the length of request lines, in bytes."""

    line: int = 16 << 20
    """A longer line is answered with an error."""
    endless: int = 4 << 30
    """Reading stops at a line that is longer than this."""
    block: int = 1 << 20
    """The rest of a line that is too long is read in blocks of this size."""


def read_requests(
    inputs: Sequence[str],
    expressions: Sequence[str] = (),
    request_files: Sequence[str] = (),
    *,
    exclude: Path | None = None,
    on_note: Callable[[str], None] = lambda _: None,
) -> Iterator[Request]:
    """Turn command-line inputs into requests, in order, reading request files line by line.

    Args:
        inputs: image files, folders (searched recursively, sorted), globs, request files (`.jsonl`), or `-` (request
            lines on stdin).
        expressions: for every image, and for every request line without an expression.
        request_files: further files of request lines, with any suffix, or `-`.
        exclude: the output folder, which may lie inside an input and is never searched.
        on_note: called with a summary of the skipped entries of each folder or pattern.

    Raises:
        UsageError: an input that can never give a request. Everything else becomes a request with `error`.
    """
    plans: list[tuple[str, list[str] | None]] = []
    notes: list[str] = []
    for name in inputs:
        images = None if _is_request_file(name) else expand_images(name, exclude=exclude, on_note=notes.append)
        plans.append((name, images))
    plans += [(name, None) for name in request_files]
    if not plans:
        raise UsageError("there is no input", hint="give an image, a folder, a request file or -")
    if not any(images is None or images for _, images in plans):
        raise UsageError("no input contains readable images", where=plans[0][0], hint="; ".join(notes) or "it is empty")
    for text in notes:
        on_note(text)
    if sum(name == STDIN for name, _ in plans) > 1:
        raise UsageError("stdin can be read only once", where=STDIN)
    for name, images in plans:
        if images is None:
            _check_request_file(name)
    if not expressions and any(images is not None for _, images in plans):
        raise UsageError("there is no expression", hint='state what to look for: -e "the red mug on the left"')
    return _requests(plans, [_typed(expression) for expression in expressions])


def _requests(plans: Iterable[tuple[str, list[str] | None]], expressions: Sequence[str]) -> Iterator[Request]:
    for name, images in plans:
        if images is None:
            yield from read_request_file(name, expressions)
        else:
            for image in images:
                yield from _ask(image, None, expressions, image, error=_problem_of_path(image))


def _is_request_file(name: str) -> bool:
    if name == STDIN:
        return True
    path = Path(name)
    return path.suffix.lower() in REQUEST_SUFFIXES and not is_folder(path)


def _check_request_file(name: str) -> None:
    if name == STDIN:
        if sys.stdin is None:
            raise UsageError("stdin is closed", where=STDIN, hint="redirect the request lines to it: < FILE")
    elif is_folder(Path(name)):
        raise UsageError("this is a folder, not a request file", where=name)
    elif file_mode(Path(name)) is None:
        raise UsageError("there is no such request file", where=name)


def expand_images(
    name: str, *, exclude: Path | None = None, on_note: Callable[[str], None] = lambda _: None
) -> list[str]:
    """The image files of one command-line input.

    Args:
        name: an image file, a folder or a pattern.
        exclude: a folder that is not searched.
        on_note: called with a summary of the skipped entries.

    Raises:
        UsageError: an empty name, or a pattern that matches nothing.
    """
    if not name:
        raise UsageError("one of the inputs is empty text", hint="give an image, a folder, a request file or -")
    skipped = Skipped()
    if is_folder(Path(name)):
        found = images_below(Path(name), skipped, exclude=exclude)
        if not found:
            on_note(
                f"{name}: the folder contains no readable images" + (f"; skipped {skipped}" if str(skipped) else "")
            )
            return found
    elif glob.has_magic(name) and _problem_of_path(name) is None and not os.path.lexists(name):
        found = files_matching(name, skipped, exclude=exclude)
    else:
        return [name]
    if text := str(skipped):
        on_note(f"{name}: skipped {text}")
    return found


def read_request_file(
    name: str, expressions: Sequence[str] = (), *, limits: LineLimits = LineLimits()
) -> Iterator[Request]:
    """Stream requests from a file of JSON lines, or from stdin for `-`.

    A line is `{"image": path, "expression": text}` or `{"image": path, "expressions": [text, ...]}`, optionally with an
    `"id"`; other keys are ignored, blank lines are skipped. Relative paths are resolved against the current directory
    first, then against the file's folder, then, if it lies in a store, against the store's images. A malformed line
    becomes a request with `error`.

    Raises:
        UsageError: the file cannot be read.
    """
    where, folder = ("<stdin>", None) if name == STDIN else (name, Path(name).parent)
    try:
        # Not sys.stdin.buffer: a thread that waits in it when the program ends would make the interpreter abort.
        with open(sys.stdin.fileno() if name == STDIN else name, "rb", closefd=name != STDIN) as lines:
            yield from parse_request_lines(
                _bounded_lines(lines, where, limits), where, folder, expressions, max_line_bytes=limits.line
            )
    except OSError as error:
        raise UsageError(f"the request file cannot be read: {error.strerror or error}", where=where) from error


def _bounded_lines(file: BinaryIO, where: str, limits: LineLimits) -> Iterator[bytes]:
    """The lines of a file; a line longer than `limits.line` is cut off one byte after that limit.

    Raises:
        UsageError: a line that does not end within `limits.endless`.
    """
    number = 0
    while line := file.readline(limits.line + 1):
        number += 1
        yield line
        length = len(line)
        while length > limits.line and line and not line.endswith(b"\n"):
            line = file.readline(limits.block)
            length += len(line)
            if length > limits.endless:
                raise UsageError(
                    f"line {number} does not end within {limits.endless >> 30} GiB",
                    where=where,
                    hint="a request is one line of JSON",
                )


def parse_request_lines(
    lines: Iterable[bytes],
    name: str,
    folder: Path | None,
    expressions: Sequence[str] = (),
    *,
    max_line_bytes: int = LineLimits.line,
) -> Iterator[Request]:
    """Requests from JSON lines.

    Args:
        lines: the lines of a file.
        name: the name of the file in errors and ids.
        folder: a base of its relative paths.
        expressions: for lines without one.
        max_line_bytes: a longer line becomes a request with `error`.
    """
    for number, line in enumerate(lines, start=1):
        where = f"{name}:{number}"
        if len(line) > max_line_bytes:
            yield _malformed(where, f"the line is longer than {max_line_bytes >> 20} MiB")
        elif line.strip():
            yield from _parse_line(line, where, folder, expressions)


def _parse_line(line: bytes, where: str, folder: Path | None, expressions: Sequence[str]) -> Iterator[Request]:
    try:
        record = json.loads(line.decode("utf-8-sig").rstrip(), parse_int=_integer)
    except (ValueError, RecursionError) as error:
        yield _malformed(where, f"not a line of JSON ({error}{_other_form(line)})")
        return
    if not isinstance(record, dict):
        yield _malformed(where, 'a request is an object like {"image": ..., "expression": ...}')
        return
    ident = record.get("id")
    if not isinstance(ident, str | int | float | None):
        yield _malformed(where, '"id" must be a string or a number')
        return
    ident = where if ident is None else str(ident)
    image = record.get("image")
    if not isinstance(image, str) or not image:
        yield _malformed(where, '"image" must be the path of an image' + _typo("image", record), ident=ident)
        return
    asked = _expressions_of(record, expressions)
    if isinstance(asked, str):
        yield _malformed(where, asked, ident=ident, image=image)
        return
    source = _locate(image, folder)
    problem = None if file_mode(source) is not None else _problem_of_path(image)
    if problem is not None:
        problem = f"{where}: {problem}"
    readable = [_readable(expression) for expression in asked]
    yield from _ask(image, source, readable, ident, numbered="expressions" in record, error=problem)


def _other_form(line: bytes) -> str:
    """A guess at the format of a line that is not JSON."""
    if line.startswith(_GZIP):
        return "; is it gzip? Unpack it first"
    num_zeros = line.count(0)
    return "; is it UTF-16? Lines must be UTF-8" if len(line) <= 3 * num_zeros <= 2 * len(line) else ""


def _integer(digits: str) -> int:
    """A whole number in a line.

    Raises:
        ValueError: it has too many digits.
    """
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


def _expressions_of(record: dict[str, object], default: Sequence[str]) -> Sequence[str] | str:
    """The expressions of a request line, or an error message about them."""
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


def _readable(expression: str) -> str:
    """An expression with U+FFFD for halves of surrogate pairs, which are not characters."""
    return _SURROGATE.sub("\ufffd", expression)


def _typed(expression: str) -> str:
    """An expression from the command line: bytes that the locale cannot decode are read as UTF-8."""
    if _SURROGATE.search(expression):
        with suppress(UnicodeEncodeError):
            return os.fsencode(expression).decode("utf-8", "replace")
    return _readable(expression)


def _malformed(where: str, message: str, *, ident: str | None = None, image: str = "") -> Request:
    return Request(id=ident or where, image=image, expression="", error=f"{where}: {message}")


def _locate(image: str, folder: Path | None) -> Path:
    """The file that a request line names: in the current directory, else in the folder of the request file, else among
    the images of the store that contains the request file."""
    path = Path(image)
    if folder is None or path.is_absolute() or file_mode(path) is not None:
        return path
    places = (root / path for root in (folder, *_image_roots(folder)))
    return next((place for place in places if file_mode(place) is not None), path)


@cache
def _image_roots(folder: Path) -> tuple[Path, ...]:
    """The image roots of a store, or of one data set of a store, if `folder` is one."""
    from refcli.data.store.layout import MANIFEST
    from refcli.data.store.read import Store

    folder = folder.absolute()
    for store_path, dataset in ((folder, None), (folder.parent, folder.name)):
        if not (store_path / MANIFEST).is_file():
            continue
        try:
            store = Store(store_path)
            names = [name for name in store.names() if dataset in (None, name.rpartition(":")[0])]
            return tuple(dict.fromkeys(store.split(name).image_root for name in names))
        except DataError:  # a manifest.json of another program
            return ()
    return ()


def _problem_of_path(image: str) -> str | None:
    """The reason why a text cannot be a path; None if it can."""
    try:
        os.lstat(image)
    except ValueError:
        return "the path contains characters that no file name can have"
    except OSError as error:
        if image[: len("data:")].lower() == "data:":
            return "this is a data URI, not the path of an image; write it to a file first"
        if _URL.match(image):
            return "this is a URL, not the path of an image; download it first"
        if error.errno == errno.ENAMETOOLONG:
            return "the name is too long for a path"
    return None


def _ask(
    image: str,
    source: Path | None,
    expressions: Sequence[str],
    ident: str,
    *,
    numbered: bool | None = None,
    error: str | None = None,
) -> Iterator[Request]:
    """One request per expression; ids are numbered if a request line or an image has several expressions."""
    several = len(expressions) > 1 if numbered is None else numbered or len(expressions) > 1
    for number, expression in enumerate(expressions):
        yield Request(f"{ident}#{number}" if several else ident, image, expression, source, error)
