"""The output folder of `predict` and `demo`: drawings, 1-bit masks and predictions.jsonl."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from refcli.answers.jsonl import answer_line
from refcli.contracts.example import RLE
from refcli.contracts.prediction import Answer
from refcli.data.reading.images import LARGE_PIXELS
from refcli.drawing.encoding import encode_jpeg, encode_png
from refcli.drawing.overlays import LARGEST_DRAWING, blank_image, draw_answer
from refcli.engine.checkpointing.run_lock import lock_output_folder
from refcli.errors import DataError, UsageError, shorten
from refcli.files import explain_write_errors, remove_stale_temporaries, temporary_folder, write_atomically
from refcli.geometry.masks import decode_mask, scaled_mask
from refcli.inference.image_folders import is_empty_folder
from refcli.inference.output_manifest import (
    DRAWINGS,
    MASKS,
    PARTIAL,
    PREDICTIONS,
    OutputManifest,
    append_to,
    create_file,
    is_real_file,
    is_real_folder,
)
from refcli.inference.requests import Request

MAX_NAME_PART = 40
"""Characters of a file name that come from an image name or an expression."""
MAX_PNG_PIXELS = 2_000_000
"""Larger drawings are written as JPEG: a PNG of a photograph takes seconds and ten times the space."""
MAX_LINE_BYTES = 1 << 28
"""Maximum length of an earlier answer's line."""


class EarlierAnswer(NamedTuple):
    """The part of an earlier run's line that a resumed run needs."""

    id: str
    image: str
    expression: str
    no_target: bool
    error: str | None


class OutputFolder:
    """Writes answers as they arrive: `overlays/`, `masks/`, and `predictions.jsonl` at the end.

    Use it as a context manager. Until it exits, the lines are in `predictions.jsonl.partial`, which remains if the run
    is interrupted; a line is written after its drawing and masks. `manifest.jsonl` lists all files; a file that it does
    not list is neither removed nor replaced.

    Args:
        path: the folder; created if it does not exist.
        force: remove the files of an earlier run, and no others.
        resume: complete an earlier run, finished or not. In an empty folder, a new run starts.

    Raises:
        UsageError: the folder cannot be created, another process writes to it, or it is not empty and neither `force`
            nor `resume` applies.
        DataError: its manifest or its answers are damaged.
    """

    def __init__(self, path: Path, *, force: bool = False, resume: bool = False) -> None:
        if force and resume:
            raise UsageError(
                "--resume completes a run and --force removes it", where=str(path), hint="give one of them"
            )
        self.path = path
        self._force = force
        self._manifest = OutputManifest(path)
        self._before: Mapping[str, Any] | None = None
        """Settings of the earlier run, which is resumed or removed."""
        self._has_begun = False
        self._size_before = 0
        """Bytes of the complete lines of the earlier run."""
        self._lines: BinaryIO | None = None
        self._is_finished = False
        self._count = 0
        with ExitStack() as stack:
            stack.enter_context(lock_output_folder(path))
            self._open(resume=resume)
            self._lock = stack.pop_all()

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            for file in (self._lines, self._manifest):
                if file is not None:
                    with suppress(OSError):  # the disk is full
                        file.close()
            self._lock.close()

    def check_inputs(self, names: Iterable[str]) -> None:
        """Refuse inputs that `begin` would remove.

        Raises:
            UsageError: one of them is a file that an earlier run wrote here, or a folder with such files.
        """
        if not self._force or self._before is None:
            return
        folder = self.path.resolve()
        for name in names:
            with suppress(OSError, ValueError):
                path = Path(name).resolve()
                is_inside = path.is_relative_to(folder)
                if is_inside and any((folder / listed).is_relative_to(path) for listed in self._manifest.listed()):
                    raise UsageError(
                        "--force would remove this input before it is read", where=name, hint="choose another --out"
                    )

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Remove or resume the earlier run, and record the settings of this one.

        Args:
            settings: the settings that the answers depend on. Without an earlier call, `add` and the end of the context
                call this method with no settings.

        Raises:
            UsageError: the earlier run had other settings.
            RefcliError: the folder cannot be written.
        """
        plain = json.loads(json.dumps(dict(settings)))
        self._has_begun = True
        with self._explain_write_errors():
            if self._before is None or self._force:
                if self._before is not None:
                    self._manifest.remove_files()
                self._manifest.create(plain, replace=self._force)
            else:
                self._check_settings(plain)
                self._manifest.reopen()
            for name in (DRAWINGS, MASKS):
                self.subfolder(name)

    def subfolder(self, name: str) -> Path:
        """A folder in this one, created if it does not exist.

        Raises:
            UsageError: it is a file or a link.
            OSError: it cannot be created.
        """
        path = self.path / name
        if os.path.lexists(path) and not is_real_folder(path):
            raise UsageError("this must be a folder, not a file or a link", where=str(path), hint="remove it")
        path.mkdir(exist_ok=True)
        return path

    def unanswered(
        self, requests: Iterable[Request], on_earlier: Callable[[EarlierAnswer], None] = lambda _: None
    ) -> Iterator[Request]:
        """The requests that the earlier run did not answer.

        Args:
            requests: all requests, in order.
            on_earlier: called with every answer of the earlier run.

        Raises:
            UsageError: the earlier run had other requests.
            DataError: its answers are damaged.
        """
        asked = iter(requests)
        for earlier in self._earlier_answers():
            request = next(asked, None)
            if request is None:
                raise UsageError(
                    f"the earlier run answered more than the {self._count:,} requests of this one",
                    where=str(self.path),
                    hint="resume with the same inputs, or choose another --out",
                )
            _check_same(request, earlier, self._count + 1, self.path)
            on_earlier(earlier)
            self._count += 1
        yield from asked

    def add(self, answer: Answer, pixels: np.ndarray | None) -> Image.Image:
        """Write one answer; returns its drawing.

        Args:
            answer: the answer to write.
            pixels: uint8 RGB [height, width, 3] of its image, which may be resized; None: a grey field.

        Raises:
            RefcliError: the folder cannot be written.
        """
        if not self._has_begun:
            self.begin({})
        name = f"{self._count:05d}-{_slug(Path(answer.image).stem)}-{_slug(answer.expression)}"
        files: dict[str, bytes] = {}
        for number, target in enumerate(answer.targets):
            if target.mask is not None:
                files[f"{MASKS}/{name}-{number}.png"] = encode_png(_mask_bitmap(target.mask))
        drawing = self.draw(answer, pixels)
        is_small = drawing.width * drawing.height <= MAX_PNG_PIXELS
        if is_small:
            files[f"{DRAWINGS}/{name}.png"] = encode_png(drawing)
        else:
            files[f"{DRAWINGS}/{name}.jpg"] = encode_jpeg(drawing)
        self.write_files(files)
        with self._explain_write_errors():
            lines = self._open_lines()
            lines.write(answer_line(answer).encode() + b"\n")
            lines.flush()
        self._count += 1
        return drawing

    def draw(self, answer: Answer, pixels: np.ndarray | None) -> Image.Image:
        """The drawing of an answer; nothing is written."""
        canvas = blank_image() if pixels is None else pixels
        return draw_answer(canvas, answer, record=f"line {self._count + 1} of {PREDICTIONS}")

    def write_files(self, files: Mapping[str, bytes]) -> None:
        """Write files with names that the manifest may list.

        Raises:
            UsageError: a file that refcli did not write has one of these names.
            RefcliError: the folder cannot be written.
        """
        with self._explain_write_errors():
            self._manifest.announce(files)
            for name, content in files.items():
                write_atomically(self.path / name, content)

    @contextmanager
    def files_of(self, name: str) -> Iterator[Path]:
        """An empty folder for the files of another tool; afterwards they are in the sub-folder `name`.

        Files of an earlier run with the same names are replaced.

        Args:
            name: a format in `WRITERS`.

        Raises:
            UsageError: a file that refcli did not write has one of the names.
            RefcliError: the folder cannot be written.
        """
        with self._explain_write_errors(), temporary_folder(self.path / name) as temporary:
            yield temporary
            places = [path.relative_to(temporary) for path in sorted(temporary.rglob("*")) if path.is_file()]
            self._manifest.announce((name / place).as_posix() for place in places)
            for folder in sorted({name / place.parent for place in places}):
                self.subfolder(folder.as_posix())
            for place in places:
                (temporary / place).replace(self.path / name / place)

    def _open(self, *, resume: bool) -> None:
        """Check the folder and read its manifest; nothing is changed, except that stale temporaries are removed."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            remove_stale_temporaries(self.path)
            is_empty = is_empty_folder(self.path)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UsageError(f"the folder cannot be created: {reason}", where=str(self.path)) from error
        if is_empty:
            return
        if not (resume or self._force):
            raise UsageError(
                "the output folder is not empty",
                where=str(self.path),
                hint="choose another --out; if refcli wrote answers there, --resume completes them and --force removes "
                "them",
            )
        with self._explain_write_errors():
            self._before = self._manifest.read()

    def _explain_write_errors(self) -> AbstractContextManager[None]:
        return explain_write_errors("the output folder", self.path, can_resume=True)

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        before = self._before or {}
        for name in sorted({*before, *settings}):
            if before.get(name) != settings.get(name):
                raise UsageError(
                    f"a resumed run cannot change {shorten(name)}: it was {shorten(repr(before.get(name)))}, "
                    f"it is {shorten(repr(settings.get(name)))}",
                    where=str(self.path),
                    hint="resume with the same options, or choose another --out",
                )

    def _earlier_file(self) -> Path | None:
        """The file with the lines of the earlier run, if it is resumed."""
        if self._before is None or self._force:
            return None
        found = [path for path in (self.path / PARTIAL, self.path / PREDICTIONS) if os.path.lexists(path)]
        for path in found:
            if len(found) > 1 or not is_real_file(path):
                raise DataError(
                    f"{PREDICTIONS} and {PARTIAL} both exist" if len(found) > 1 else "this is not a regular file",
                    where=str(path),
                    hint="remove the one that refcli did not write",
                )
        return found[0] if found else None

    def _earlier_answers(self) -> Iterator[EarlierAnswer]:
        """The complete lines of the earlier run; the request of an incomplete last line is answered again."""
        path = self._earlier_file()
        if path is None:
            return
        with path.open("rb") as file:
            number = 0
            while (line := file.readline(MAX_LINE_BYTES)).endswith(b"\n"):
                number += 1
                yield _read_earlier(line, f"{path}:{number}")
                self._size_before += len(line)
            if len(line) == MAX_LINE_BYTES:
                raise DataError("the line does not end", where=f"{path}:{number + 1}", hint="start again with --force")

    def _open_lines(self) -> BinaryIO:
        """The file of lines, open behind the complete lines of the earlier run."""
        if self._lines is None:
            partial, earlier = self.path / PARTIAL, self._earlier_file()
            if earlier is None:
                self._lines = create_file(partial)
            else:
                if earlier != partial:
                    earlier.replace(partial)
                self._lines = append_to(partial, self._size_before)
        return self._lines

    def finish(self) -> None:
        """Complete `predictions.jsonl`; no answer can be added afterwards. The end of the context does it otherwise."""
        if self._is_finished:
            return
        if not self._has_begun:
            self.begin({})
        with self._explain_write_errors():
            earlier = self._earlier_file()
            is_finished = earlier is not None and earlier.name == PREDICTIONS and self._lines is None
            if is_finished and (self.path / PREDICTIONS).stat().st_size == self._size_before:
                return  # nothing was added
            lines = self._open_lines()
            lines.flush()
            os.fsync(lines.fileno())
            lines.close()
            (self.path / PARTIAL).replace(self.path / PREDICTIONS)
        self._is_finished = True


def _read_earlier(line: bytes, where: str) -> EarlierAnswer:
    try:
        record = json.loads(line)
        found = EarlierAnswer(*(record[field] for field in EarlierAnswer._fields))
        is_answer = isinstance(found.no_target, bool) and isinstance(found.error, str | None)
    except (ValueError, RecursionError, TypeError, KeyError):
        is_answer = False
    if not is_answer:
        raise DataError("this is not a line with an answer", where=where, hint="start again with --force")
    return found


def _check_same(request: Request, earlier: EarlierAnswer, number: int, path: Path) -> None:
    for field in ("id", "image", "expression"):
        now, before = getattr(request, field), getattr(earlier, field)
        if now != before:
            raise UsageError(
                f"request {number:,} differs from the one that the earlier run answered: its {field} is "
                f"{shorten(repr(now))}, it was {shorten(repr(before))}",
                where=str(path),
                hint="resume with the same inputs, or choose another --out",
            )


def _mask_bitmap(mask: RLE) -> np.ndarray:
    """The bitmap of a mask; for a very large image, reduced to the size of the drawing."""
    height, width = mask.size
    if height * width <= LARGE_PIXELS:
        return decode_mask(mask)
    factor = LARGEST_DRAWING / max(height, width)
    return np.ascontiguousarray(scaled_mask(mask, max(1, round(width * factor)), max(1, round(height * factor))))


def _slug(text: str) -> str:
    """A file-name part of plain letters, digits and dashes."""
    plain = unicodedata.normalize("NFKD", text[: 4 * MAX_NAME_PART]).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9]+", "-", plain)[:MAX_NAME_PART].strip("-").lower() or "x"
