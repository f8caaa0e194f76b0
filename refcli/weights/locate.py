"""Find the directory of weights by name, address or path, without the network."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from refcli.errors import UsageError, WeightsError
from refcli.tables import did_you_mean
from refcli.weights.catalog import Catalog
from refcli.weights.layout import MODEL_FILE, is_file

BUILTIN = "builtin"
RUN_WEIGHTS = "weights"
"""The weights folder of every training run."""
BUILTIN_PATH = Path(__file__).parent / "builtin"
HOME_VARIABLE = "REFCLI_HOME"
SCHEME = "hf://"
URI_FORM = "hf://ORGANISATION/REPOSITORY[@REVISION]/FILE[#MEMBER]"
EXAMPLE = "hf://linhuixiao/OneRef@main/beit3_checkpoints/beit3_base_indomain_patch16_224.pth"
URI = re.compile(
    r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/#]+))?/(?P<file>[^#]+)(?:#(?P<member>.+))?", re.ASCII
)


@dataclass(frozen=True)
class HubUri:
    """One file in a repository on the Hugging Face Hub."""

    repo: str
    file: str
    revision: str | None = None
    """A branch, tag or commit; None for the default branch."""
    member: str | None = None
    """For a zip: the end of the wanted member's name."""

    def __post_init__(self) -> None:
        """Check that no part leads out of the repository.

        Raises:
            UsageError: a part does.
        """
        for name in (self.repo, self.file, *([self.revision] if self.revision else ())):
            if any(part in ("", ".", "..") for part in name.split("/")) or "\\" in name or "\0" in name:
                raise UsageError(f"{name!r} leaves its repository", where=str(self), hint=URI_FORM)

    @property
    def page(self) -> str:
        """The repository below the address of the Hub."""
        return self.repo

    @classmethod
    def parse(cls, text: str) -> HubUri:
        """Read `hf://org/repo@rev/file#member`, percent-encoded or not.

        Raises:
            UsageError: it has another form, or leads out of the repository.
        """
        found = URI.fullmatch(text)
        if found is None:
            raise UsageError(
                "this is not the address of a file on the Hub",
                where=text,
                hint=f"{URI_FORM}, e.g. {EXAMPLE}",
            )
        parts = {name: unquote(part) if part else None for name, part in found.groupdict().items()}
        return cls(parts["repo"] or "", parts["file"] or "", parts["revision"], parts["member"])

    def __str__(self) -> str:
        """The canonical address: every file has exactly one, and `parse` reads it."""
        revision = f"@{quote(self.revision, safe='')}" if self.revision else ""
        file, member = (part.replace("%", "%25") for part in (self.file, self.member or ""))
        return f"{SCHEME}{self.repo}{revision}/{file.replace('#', '%23')}" + (f"#{member}" if member else "")


def home() -> Path:
    """The directory of pulled files: $REFCLI_HOME, else ~/.cache/refcli.

    Raises:
        UsageError: neither REFCLI_HOME nor HOME is set, and the system has no entry for this user.
    """
    given = os.environ.get(HOME_VARIABLE)
    try:
        return Path(given or Path("~") / ".cache" / "refcli").expanduser()
    except RuntimeError as problem:
        raise UsageError(
            "this user has no home directory for pulled weights",
            where=f"{HOME_VARIABLE}={given}" if given else HOME_VARIABLE,
            hint=f"set {HOME_VARIABLE} or HOME to a directory",
        ) from problem


def has_home() -> bool:
    """Whether there is a home directory; without one nothing can have been pulled."""
    try:
        home()
    except UsageError:
        return False
    return True


def canonical(name_or_uri: str) -> str:
    """The canonical spelling of a name or an address, by which weights are pinned and stored.

    Raises:
        UsageError: a malformed hf:// address.
    """
    return str(HubUri.parse(name_or_uri)) if name_or_uri.startswith(SCHEME) else name_or_uri


def pulled_directory(name_or_uri: str) -> Path:
    """The directory that `refcli weights pull` writes; each name and each address has its own.

    Raises:
        UsageError: a malformed hf:// address, or there is no home directory.
    """
    address = canonical(name_or_uri)
    if not address.startswith(SCHEME):
        return home() / "weights" / address
    readable = re.sub(r"[^\w.+-]+", "--", address.removeprefix(SCHEME), flags=re.ASCII)
    return home() / "weights" / f"{readable[:150]}-{hashlib.sha256(address.encode()).hexdigest()[:8]}"


def resolve(name_or_path: str) -> Path:
    """The directory of `builtin`, a path, a catalogue name or an hf:// address; the last two must have been pulled.

    Raises:
        WeightsError: the weights were not pulled; the hint gives the command.
        UsageError: an unknown name, a path without a model, or a malformed hf:// address.
    """
    if name_or_path == BUILTIN:
        return BUILTIN_PATH
    given = Path(name_or_path)
    if is_file(given / MODEL_FILE):
        return given
    names = Catalog.load().names()
    if name_or_path in names or name_or_path.startswith(SCHEME):
        return _pulled(name_or_path)
    if is_file(given):
        raise UsageError(
            "these weights are a single file, not a weights directory",
            where=name_or_path,
            hint=f"refcli weights convert {shlex.quote(name_or_path)} --out DIR",
        )
    rest = (
        "give `builtin`, a name of `refcli weights list`, or a directory with model.safetensors and config.yaml, "
        "such as RUN/weights"
    )
    if is_file(given / RUN_WEIGHTS / MODEL_FILE):
        hint = f"did you mean {str(given / RUN_WEIGHTS)!r}? {rest}"
    else:
        hint = did_you_mean(name_or_path, [] if os.path.isdir(given) else names, rest=rest)  # noqa: PTH112
    raise UsageError(
        f"there are no weights called {name_or_path!r}",
        where=str(given / MODEL_FILE),
        hint=hint,
    )


def _pulled(name_or_uri: str) -> Path:
    directory = pulled_directory(name_or_uri)
    if not name_or_uri.startswith(SCHEME) and Catalog.load().find(name_or_uri).kind == "tokenizer":
        raise UsageError(
            f"{name_or_uri!r} is a tokenizer, not a model",
            where=str(directory),
            hint=f"pull it with `refcli weights pull {name_or_uri}`, and set model.text.tokenizer to its file",
        )
    if not is_file(directory / MODEL_FILE):
        raise WeightsError(
            f"the weights {name_or_uri!r} are not on this machine yet",
            where=str(directory),
            hint=f"refcli weights pull {shlex.quote(name_or_uri)}",
        )
    return directory
