"""The pages of the documentation, their code blocks, and the commands in them.

An HTML comment on the line before a block changes how it is tested:

    <!-- not run: reason -->    never run; the syntax of its refcli commands is still checked
    <!-- slow: reason -->       run with `-m slow` only
"""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from importlib import import_module
from itertools import dropwhile
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]

_BLOCK = re.compile(r"(?:^<!-- (not run|slow): (\S.*?) -->\n)?^```([^\n]*)\n(.*?)^```$", re.M | re.S)
_HERE_DOCUMENT = re.compile(r"<<'(\w+)'")
_CODE_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    page: Path
    line: int
    """Of its opening fence, from 1."""
    language: str
    text: str
    not_run: str | None
    """Why no test runs it."""
    slow: str | None
    """Why only a slow test runs it."""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"


def site_hooks() -> ModuleType:
    """`docs/hooks.py`, which generates pages of the site."""
    if str(DOCS) not in sys.path:
        sys.path.append(str(DOCS))
    return import_module("hooks")


def blocks_of(page: Path) -> list[Block]:
    """The code blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        mark, reason, language, body = match.groups()
        line = text.count("\n", 0, match.start()) + 1 + (mark is not None)
        reasons = {mark: reason}
        found.append(Block(page, line, language.strip(), body, reasons.get("not run"), reasons.get("slow")))
    return found


def prose_of(page: Path) -> str:
    """A page without its code blocks and comments."""
    return re.sub(r"<!--.*?-->", "", _BLOCK.sub("", page.read_text(encoding="utf-8")), flags=re.S)


def code_spans(page: Path) -> list[str]:
    """The inline code of a page."""
    return _CODE_SPAN.findall(prose_of(page))


def statements_of(script: str) -> list[str]:
    """The statements of a shell script: its lines, joined inside quotations and here-documents and split at `&&`."""
    found: list[str] = []
    lines = iter(script.replace("\\\n", " ").splitlines(keepends=True))
    for line in lines:
        statement = line
        while not _is_complete(statement):
            statement += next(lines)
        if here := _HERE_DOCUMENT.search(statement):
            for each in lines:
                statement += each
                if each.strip() == here[1]:
                    break
            found.append(statement)
        else:
            found += [part.strip() for part in statement.split(" && ") if shlex.split(part, comments=True)]
    return found


def _is_complete(statement: str) -> bool:
    try:
        shlex.split(statement, comments=True)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Command:
    """One program with its arguments, without redirections."""

    words: tuple[str, ...]
    stdout: str | None = None
    """The file that gets its output."""

    @property
    def refcli_arguments(self) -> list[str] | None:
        """What refcli gets, also after variables, `python -m` or `torchrun -m`; None for other programs."""
        words = list(dropwhile(re.compile(r"[A-Z_]+=").match, self.words))
        if words[:1] == ["refcli"]:
            return words[1:]
        return words[words.index("refcli") + 1 :] if "refcli" in words and "-m" in words else None


def pipeline_of(statement: str) -> list[Command]:
    """The commands of a statement, joined by pipes."""
    first_line = _HERE_DOCUMENT.split(statement)[0]
    lexer = shlex.shlex(first_line, posix=True, punctuation_chars="|<>")
    lexer.whitespace_split = True
    commands: list[Command] = []
    words: list[str] = []
    stdout = None
    tokens = iter([*lexer, "|"])
    for token in tokens:
        if token == ">":
            stdout = next(tokens)
        elif token == "<":
            next(tokens)
        elif token == "|":
            commands.append(Command(tuple(words), stdout))
            words, stdout = [], None
        else:
            words.append(token)
    return [command for command in commands if command.words]
