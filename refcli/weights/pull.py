"""Pull published weights: find out which file, fetch it, convert it, and put the directory in place at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from pydantic import Field, ValidationError

from refcli.config.schema import Settings, TextSettings
from refcli.errors import RefcliError, UsageError, WeightsError
from refcli.files import write_atomically
from refcli.weights.catalog import KINDS_WITH_TEXT, TOKENIZER, Catalog, CatalogEntry
from refcli.weights.hub import HubFile, NotOnHubError, fetch, waiting
from refcli.weights.layout import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    exit_on_sigterm,
    explain_weights_write_errors,
    is_file,
    read_config,
    read_meta,
    write_meta,
)
from refcli.weights.locate import HOME_VARIABLE, SCHEME, HubUri, canonical, has_home, home, pulled_directory
from refcli.weights.official.archives import extract_checkpoint, is_zip_of_weights


class Pin(Settings):
    """Exactly which file some weights came from."""

    repo: str
    file: str
    revision: str
    sha256: str
    num_bytes: int


class LockFile(Settings):
    """The content of `weights.lock.json`."""

    version: Literal[1] = 1
    weights: dict[str, Pin] = Field(default_factory=dict)
    """Catalogue name or hf:// address -> its file."""


def lock_path() -> Path:
    """Where pins are kept; the file may be copied to other machines."""
    return home() / "weights.lock.json"


def read_pins() -> Mapping[str, Pin]:
    """Every pin; empty if nothing was ever pinned.

    Raises:
        WeightsError: the lock file is damaged.
    """
    if not has_home():
        return {}
    path = lock_path()
    if not is_file(path):
        return {}
    try:
        return LockFile.model_validate_json(path.read_bytes()).weights
    except (OSError, ValidationError) as problem:
        raise WeightsError(
            "the lock file cannot be read",
            where=str(path),
            hint=f"mend or remove it ({' '.join(str(problem).split())[:200]})",
        ) from problem


def write_pin(name: str, pin: Pin) -> None:
    """Add or replace one pin, also while others write theirs; errors as `read_pins`."""
    path = lock_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        content = LockFile(weights={**read_pins(), name: pin})
        write_atomically(path, (json.dumps(content.model_dump(), indent=2, sort_keys=True) + "\n").encode())


AUTO = "auto"
"""Kind of a file that nobody has told anything about."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """What a name or an address asks for."""

    name: str
    uris: tuple[HubUri, ...]
    """The same file in several repositories, best first."""
    kind: str
    sha256: str | None
    licence: str | None
    entry: CatalogEntry | None = None
    """What the catalogue says about it."""


def ask(name_or_uri: str, *, revision: str | None, pinned: Pin | None, pin: bool) -> Wanted:
    """Settle the revision and the checksum. A pin is obeyed, unless --revision and --pin together replace it.

    Raises:
        UsageError: unknown name, malformed address, two revisions, or weights that are inside refcli.
    """
    entry, uri, known_revision, known_sha256 = None, None, None, None
    if name_or_uri.startswith(SCHEME):
        uri = HubUri.parse(name_or_uri)
        if revision and uri.revision and revision != uri.revision:
            raise UsageError("two revisions are given", where=f"--revision {revision}", hint=f"{name_or_uri} has one")
        known_revision = uri.revision
    else:
        entry = Catalog.load().find(name_or_uri)
        if entry.file is None:
            raise UsageError(f"{name_or_uri} is inside refcli", where=name_or_uri, hint="there is nothing to pull")
        known_revision, known_sha256 = entry.revision, entry.sha256
    if pinned is not None:
        known_revision, known_sha256 = pinned.revision, pinned.sha256
    asked = revision or known_revision
    if revision and revision != known_revision and (pin or pinned is None):
        known_sha256 = None
    if uri is not None:
        return Wanted(name_or_uri, (HubUri(uri.repo, uri.file, asked, uri.member),), AUTO, known_sha256, None)
    assert entry is not None
    assert entry.file is not None
    origin = Catalog.load().origin(entry)
    uris = tuple(HubUri(repo, entry.file, asked, entry.member) for repo in _repos(entry, pinned))
    return Wanted(name_or_uri, uris, entry.kind, known_sha256, origin.licence, entry)


def _repos(entry: CatalogEntry, pinned: Pin | None) -> tuple[str, ...]:
    """The repositories to try: the pinned one first, for its commits are its own."""
    repos = Catalog.load().origin(entry).repos
    return repos if pinned is None else (pinned.repo, *(repo for repo in repos if repo != pinned.repo))


def fetch_first(wanted: Wanted, *, force: bool, say: Say) -> HubFile:
    """Fetch from the first repository that has the file; errors as `fetch`."""
    missing: NotOnHubError | None = None
    for uri in wanted.uris:
        try:
            say(f"looking for {uri}")
            return fetch(uri, sha256=wanted.sha256, force=force, say=say)
        except NotOnHubError as problem:
            say(problem.message)
            missing = missing or problem
    assert missing is not None
    raise missing


def pin_of(wanted: Wanted, file: HubFile) -> Pin:
    """Exactly which file came."""
    return Pin(
        repo=file.repo,
        file=wanted.uris[0].file,
        revision=file.revision,
        sha256=file.sha256,
        num_bytes=file.num_bytes,
    )


OFFICIAL_TOKENIZER = "beit3.spm"
"""Name of the file in the directory of a pulled tokenizer; `Tokenizer.load` counts the pieces of a file called so."""
ANSWERS = {"rec": "box", "res": "mask"}
"""Task of the catalogue -> what a conversion calls its answer."""
WIDTHS = {"base": 768, "large": 1024}
ORIGIN_KEYS = frozenset({*Pin.model_fields, "member", "tokenizer"})
"""What `read_origin` gives at the least."""

Converter = Callable[..., Any]
"""`refcli.weights.official.convert.convert(path, kind=, out=, tokenizer=, origin=)`, or what stands for it."""


def pull(
    name_or_uri: str,
    *,
    revision: str | None = None,
    pin: bool = False,
    force: bool = False,
    say: Say = lambda text: None,
    convert: Converter | None = None,
) -> Path:
    """Download, check and convert some weights; what is already there is used again.

    Args:
        name_or_uri: a name of the catalogue or `hf://org/repo@rev/file`.
        revision: the branch, tag or commit; else the pinned one, else the catalogue's, else the default branch.
        pin: write down the commit and checksum that came, also of the tokenizer; later pulls want the same, unless a
            `revision` is given together with `pin`.
        force: download and convert again.
        say: gets a line of talk now and then.
        convert: makes a weights directory of a checkpoint; refcli's own by default.

    Returns:
        The directory: model.safetensors, config.yaml, meta.json and tokenizer.spm; or meta.json and beit3.spm.

    Raises:
        UsageError: unknown name, malformed address, or nothing to pull.
        DownloadError: no access, no connection, no such file, no room for it.
        WeightsError: wrong checksum, or a file that is not what it should be.
        RefcliError: the disk refuses.
    """
    name = canonical(name_or_uri)
    pinned = read_pins().get(name)
    wanted = ask(name, revision=revision, pinned=pinned, pin=pin)
    directory = pulled_directory(name)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise RefcliError(
            f"pulled weights cannot be written here: {problem.strerror}",
            where=problem.filename or str(directory.parent),
            hint=f"set {HOME_VARIABLE} to a directory that you may write",
        ) from problem
    with explain_weights_write_errors(directory):
        lock = FileLock(directory.with_name(f".{directory.name}.lock"))
        with waiting(lock, say, f"another refcli is pulling {name}; waiting for it"):
            there = None if force else read_origin(directory)
            if there is None or not _is_enough(there, wanted, revision=revision):
                file = fetch_first(wanted, force=force, say=say)
                if there is None or there["sha256"] != file.sha256 or there["member"] != wanted.uris[0].member:
                    there = _install(wanted, file, directory, force=force, say=say, convert=convert)
                else:
                    there |= {"repo": file.repo, "revision": file.revision}
                    say(f"the file is the one that {directory} was made from")
            else:
                say(f"already here: {directory}")
        if pin:
            _write_pins(name, there)
    if not pin and pinned is None and wanted.sha256 is None:
        say(f"unverified: no checksum is known for {name}; --pin keeps this one ({there['sha256']})")
    return directory


def read_origin(directory: Path) -> dict[str, Any] | None:
    """Where pulled weights came from: name, repo, file, member, revision, sha256, num_bytes, licence, tokenizer.

    `tokenizer` is None, or the `Pin` (as a mapping) of the tokenizer beside a model that reads text.
    None for a directory that was not pulled, or that lacks one of its files.
    """
    try:
        meta = read_meta(directory)
    except WeightsError:
        return None
    kind, origin, files = (meta.get(key) for key in ("kind", "origin", "files"))
    if not isinstance(origin, dict) or not isinstance(files, dict) or not _is_origin(origin):
        return None
    needed = {*files} if kind == "tokenizer" else {*files, CONFIG_FILE}
    if isinstance(kind, str) and kind in KINDS_WITH_TEXT:
        needed.add(TOKENIZER_FILE)
    return origin if all(is_file(directory / name) for name in needed) else None


def _is_origin(values: Mapping[str, Any]) -> bool:
    """Whether these are of the form that `read_origin` gives."""
    if not values.keys() >= ORIGIN_KEYS or not isinstance(values["member"], str | None):
        return False
    try:
        for pin in (values, values["tokenizer"]):
            if pin is not None:
                Pin.model_validate({key: pin[key] for key in Pin.model_fields})
    except (ValueError, TypeError, LookupError):
        return False
    return True


def _is_enough(there: dict[str, Any], wanted: Wanted, *, revision: str | None) -> bool:
    """Whether the directory is certainly what is wanted, without asking the hub; `revision` is the user's own."""
    if there["member"] != wanted.uris[0].member or wanted.sha256 not in (None, there["sha256"]):
        return False
    is_same_file = wanted.sha256 is not None and revision is None
    return is_same_file or wanted.uris[0].revision in (None, there["revision"])


def _install(
    wanted: Wanted, file: HubFile, directory: Path, *, force: bool, say: Say, convert: Converter | None
) -> dict[str, Any]:
    """Build the directory beside its place and move it there; returns what `read_origin` will."""
    origin: dict[str, Any] = {
        "name": wanted.name,
        **pin_of(wanted, file).model_dump(),
        "member": wanted.uris[0].member,
        "licence": wanted.licence,
        "tokenizer": None,
    }
    temporary = directory.with_name(f".{directory.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)  # of a pull that was killed: nobody else holds the lock
    with exit_on_sigterm():
        temporary.mkdir()
        try:
            built = temporary / "built"
            if wanted.kind == "tokenizer":
                _build_tokenizer(wanted, file, built, origin)
            else:
                _build_model(wanted, file, built, origin, force=force, say=say, convert=convert)
            if directory.exists():
                directory.rename(temporary / "replaced")
            built.rename(directory)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return origin


def _build_tokenizer(wanted: Wanted, file: HubFile, built: Path, origin: Mapping[str, Any]) -> None:
    from refcli.text.tokenizer import Tokenizer

    built.mkdir()
    copy = built / OFFICIAL_TOKENIZER
    shutil.copyfile(file.path, copy)
    with _named(wanted, file, copy):
        Tokenizer.load(TextSettings(tokenizer=str(copy)))
    meta = {"kind": "tokenizer", "files": {OFFICIAL_TOKENIZER: file.sha256}, "origin": origin}
    write_meta(built, meta)


def _build_model(
    wanted: Wanted,
    file: HubFile,
    built: Path,
    origin: dict[str, Any],
    *,
    force: bool,
    say: Say,
    convert: Converter | None,
) -> None:
    checkpoint = _checkpoint(wanted, file, built.parent, say)
    with _named(wanted, file, checkpoint):
        kind = _kind_of(checkpoint) if wanted.kind == AUTO else wanted.kind
    tokenizer = None
    if kind in KINDS_WITH_TEXT:
        asked = ask(TOKENIZER, revision=None, pinned=read_pins().get(TOKENIZER), pin=False)
        try:
            found = fetch_first(asked, force=force, say=say)
        except RefcliError as problem:
            problem.message = f"the tokenizer that this model needs cannot be fetched: {problem.message}"
            raise
        tokenizer, origin["tokenizer"] = found.path, pin_of(asked, found).model_dump()
    say(f"converting {checkpoint.name}")
    converter = convert or _own_converter()
    with _named(wanted, file, checkpoint):
        converter(checkpoint, kind=kind, out=built, tokenizer=tokenizer, origin=origin)
    for note in _notes(wanted.entry, built):
        say(note)


def _kind_of(checkpoint: Path) -> str:
    from refcli.weights.official.convert import detect_kind
    from refcli.weights.official.reading import read_checkpoint

    return detect_kind(read_checkpoint(checkpoint).state)


@contextmanager
def _named(wanted: Wanted, file: HubFile, copy: Path) -> Iterator[None]:
    """Let what is wrong with a file that will be gone by then be about the one that was downloaded."""
    try:
        yield
    except WeightsError as problem:
        if (problem.where or "").startswith((str(copy), "state dict")):
            problem.where = f"{wanted.uris[0]} ({file.path})"
        raise


def _notes(entry: CatalogEntry | None, built: Path) -> Iterator[str]:
    """What the user should know about converted weights: the conversion's notes, and what the catalogue says else."""
    meta = read_meta(built)
    yield from meta.get("notes", ())
    if entry is None:
        return
    config = read_config(built)
    tower = config.get("tower", config)
    size = tower.get("image_size")
    tasks = [answer for task, answer in ANSWERS.items() if task in entry.tasks]
    for what, found, stated in (
        ("image size", size[0] if isinstance(size, list) else size, entry.image_size),
        ("width", tower.get("dim"), WIDTHS.get(entry.tower or "")),
        ("tasks", meta.get("tasks"), tasks),
    ):
        if None not in (found, stated) and found != stated:
            yield f"not what the catalogue says: {what} {found} instead of {stated}"


def _own_converter() -> Converter:
    from refcli.weights.official.convert import convert

    return convert


def _checkpoint(wanted: Wanted, file: HubFile, temporary: Path, say: Say) -> Path:
    """The checkpoint itself, out of its zip if it is in one."""
    member = wanted.uris[0].member
    if not is_zip_of_weights(file.path):
        if member is not None:
            raise WeightsError("this is no zip of checkpoints", where=str(file.path), hint=f"it should hold {member}")
        return file.path
    out = temporary / "checkpoint.pth"
    say(f"took {extract_checkpoint(file.path, member, out)} out of {file.path.name}")
    return out


def _write_pins(name: str, origin: Mapping[str, Any]) -> None:
    """Pin what is there; its tokenizer too, unless that has a pin already."""
    write_pin(name, Pin(**{key: origin[key] for key in Pin.model_fields}))
    if origin["tokenizer"] is not None and TOKENIZER not in read_pins():
        write_pin(TOKENIZER, Pin(**origin["tokenizer"]))
