"""Pull published weights: identify the file, download it, convert it, and put the complete directory in place."""

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
from refcli.weights.hub import HubFile, NotOnHubError, Report, fetch, wait_for
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
from refcli.weights.official.conversions.table import AUTO


class Pin(Settings):
    """The exact file that weights came from."""

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
    """The lock file, which holds the pins; it may be copied to other machines."""
    return home() / "weights.lock.json"


def read_pins() -> Mapping[str, Pin]:
    """All pins; empty if nothing was pinned.

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
            hint=f"fix or remove it ({' '.join(str(problem).split())[:200]})",
        ) from problem


def write_pin(name: str, pin: Pin) -> None:
    """Add or replace one pin, safely while other processes write theirs; errors as `read_pins`."""
    path = lock_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        content = LockFile(weights={**read_pins(), name: pin})
        write_atomically(path, (json.dumps(content.model_dump(), indent=2, sort_keys=True) + "\n").encode())


@dataclass(frozen=True)
class PullTarget:
    """The file that a name or an address stands for."""

    name: str
    uris: tuple[HubUri, ...]
    """The same file in several repositories, in the order in which they are tried."""
    kind: str
    """A row of `CONVERSIONS`, `tokenizer`, or `auto` to detect it."""
    sha256: str | None
    """The expected checksum, if known."""
    licence: str | None
    entry: CatalogEntry | None = None
    """Its entry in the catalogue, if it has one."""


def find_target(name_or_uri: str, *, revision: str | None, pinned: Pin | None, pin: bool) -> PullTarget:
    """Decide which file, revision and checksum to expect: those of the pin, unless --revision and --pin replace it.

    Raises:
        UsageError: unknown name, malformed address, two revisions, or weights that are part of refcli.
    """
    if name_or_uri.startswith(SCHEME):
        uri = HubUri.parse(name_or_uri)
        if revision and uri.revision and revision != uri.revision:
            raise UsageError(
                "two revisions are given", where=f"--revision {revision}", hint="the address already names one"
            )
        repos: tuple[str, ...] = (uri.repo,)
        entry, file, member, licence = None, uri.file, uri.member, None
        known_revision, known_sha256 = uri.revision, None
    else:
        entry = Catalog.load().find(name_or_uri)
        if entry.file is None:
            raise UsageError(f"{name_or_uri} is part of refcli", where=name_or_uri, hint="there is nothing to pull")
        origin = Catalog.load().origin(entry)
        repos, file, member, licence = origin.repos, entry.file, entry.member, origin.licence
        known_revision, known_sha256 = entry.revision, entry.sha256
        if pinned is not None:  # the commits of a repository exist in no other
            repos = (pinned.repo, *(repo for repo in repos if repo != pinned.repo))
    if pinned is not None:
        known_revision, known_sha256 = pinned.revision, pinned.sha256
    if revision and revision != known_revision and (pin or pinned is None):
        known_sha256 = None
    uris = tuple(HubUri(repo, file, revision or known_revision, member) for repo in repos)
    return PullTarget(name_or_uri, uris, entry.kind if entry else AUTO, known_sha256, licence, entry)


def fetch_first(target: PullTarget, *, force: bool, report: Report) -> HubFile:
    """Fetch from the first repository that has the file; errors as `fetch`."""
    missing: NotOnHubError | None = None
    for uri in target.uris:
        try:
            report(f"looking for {uri}")
            return fetch(uri, sha256=target.sha256, force=force, report=report)
        except NotOnHubError as problem:
            report(problem.message)
            missing = missing or problem
    assert missing is not None
    raise missing


def pin_of(target: PullTarget, file: HubFile) -> Pin:
    """The pin of a downloaded file."""
    return Pin(
        repo=file.repo,
        file=target.uris[0].file,
        revision=file.revision,
        sha256=file.sha256,
        num_bytes=file.num_bytes,
    )


TASK_NAMES = {"rec": "box", "res": "mask"}
"""Task in the catalogue -> the same task in the meta.json of converted weights."""
WIDTHS = {"base": 768, "large": 1024}
ORIGIN_KEYS = frozenset({*Pin.model_fields, "member", "tokenizer"})
"""Keys that every origin has."""

Converter = Callable[..., Any]
"""`refcli.weights.official.convert.convert(path, kind=, out=, tokenizer=, origin=)`, or a replacement."""


def pull(
    name_or_uri: str,
    *,
    revision: str | None = None,
    pin: bool = False,
    force: bool = False,
    report: Report = lambda line: None,
    convert: Converter | None = None,
) -> Path:
    """Download, verify and convert weights; files that this machine already has are reused.

    Args:
        name_or_uri: a name of the catalogue or `hf://org/repo@rev/file`.
        revision: the branch, tag or commit; else the pinned one, else the catalogue's, else the default branch.
        pin: record the commit and the checksum, also of the tokenizer; later pulls require the same, unless
            `revision` and `pin` are given together.
        force: download and convert again.
        report: receives a line of progress now and then.
        convert: converts a checkpoint to a weights directory; None: `refcli.weights.official.convert.convert`.

    Returns:
        The directory: model.safetensors, config.yaml, meta.json and tokenizer.spm; or meta.json and beit3.spm.

    Raises:
        UsageError: unknown name, malformed address, or nothing to pull.
        DownloadError: no access, no connection, no such file, or no room for it.
        WeightsError: wrong checksum, or a file of another kind.
        RefcliError: the files cannot be written.
    """
    name = canonical(name_or_uri)
    pinned = read_pins().get(name)
    target = find_target(name, revision=revision, pinned=pinned, pin=pin)
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
        with wait_for(lock, report, f"another refcli is pulling {name}; waiting for it"):
            origin = None if force else read_origin(directory)
            if origin is not None and _is_up_to_date(origin, target, revision=revision):
                report(f"already pulled: {directory}")
            else:
                file = fetch_first(target, force=force, report=report)
                if origin is None or origin["sha256"] != file.sha256 or origin["member"] != target.uris[0].member:
                    origin = _install(target, file, directory, force=force, report=report, convert=convert)
                else:
                    origin |= {"repo": file.repo, "revision": file.revision}
                    report(f"{directory} was converted from the same file")
        if pin:
            _write_pins(name, origin)
    if not pin and pinned is None and target.sha256 is None:
        report(f"unverified: no checksum is known for {name}; --pin records this one ({origin['sha256']})")
    return directory


def read_origin(directory: Path) -> dict[str, Any] | None:
    """The origin of pulled weights: name, repo, file, member, revision, sha256, num_bytes, licence, tokenizer.

    `tokenizer` is the `Pin` (as a mapping) of the tokenizer of a model that reads text, else None.
    The result is None for a directory that was not pulled, or that lacks one of its files.
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
    """Whether the values have the form that `read_origin` describes."""
    if not values.keys() >= ORIGIN_KEYS or not isinstance(values["member"], str | None):
        return False
    try:
        for pin in (values, values["tokenizer"]):
            if pin is not None:
                Pin.model_validate({key: pin[key] for key in Pin.model_fields})
    except (ValueError, TypeError, LookupError):
        return False
    return True


def _is_up_to_date(origin: Mapping[str, Any], target: PullTarget, *, revision: str | None) -> bool:
    """Whether a directory of that origin certainly is the target, without asking the Hub.

    Args:
        origin: as `read_origin` returns it.
        target: the file to pull.
        revision: the one that the user asked for.
    """
    if origin["member"] != target.uris[0].member or target.sha256 not in (None, origin["sha256"]):
        return False
    is_same_file = target.sha256 is not None and revision is None
    return is_same_file or target.uris[0].revision in (None, origin["revision"])


def _install(
    target: PullTarget, file: HubFile, directory: Path, *, force: bool, report: Report, convert: Converter | None
) -> dict[str, Any]:
    """Build the directory beside its final place and move it there; returns its origin."""
    origin: dict[str, Any] = {
        "name": target.name,
        **pin_of(target, file).model_dump(),
        "member": target.uris[0].member,
        "licence": target.licence,
        "tokenizer": None,
    }
    temporary = directory.with_name(f".{directory.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed pull: this process holds the lock
    with exit_on_sigterm():
        temporary.mkdir()
        try:
            built = temporary / "built"
            if target.kind == "tokenizer":
                _build_tokenizer(target, file, built, origin)
            else:
                _build_model(target, file, built, origin, force=force, report=report, convert=convert)
            if directory.exists():
                directory.rename(temporary / "replaced")
            built.rename(directory)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return origin


def _build_tokenizer(target: PullTarget, file: HubFile, built: Path, origin: Mapping[str, Any]) -> None:
    from refcli.text.tokenizer import OFFICIAL_NAME, Tokenizer

    built.mkdir()
    copy = built / OFFICIAL_NAME
    shutil.copyfile(file.path, copy)
    with _errors_naming(target, file, copy):
        Tokenizer.load(TextSettings(tokenizer=str(copy)))
    write_meta(built, {"kind": "tokenizer", "files": {OFFICIAL_NAME: file.sha256}, "origin": origin})


def _build_model(
    target: PullTarget,
    file: HubFile,
    built: Path,
    origin: dict[str, Any],
    *,
    force: bool,
    report: Report,
    convert: Converter | None,
) -> None:
    """Convert the file, with the tokenizer that it needs; `origin` receives the pin of the tokenizer."""
    from refcli.weights.official import convert as official
    from refcli.weights.official.reading import read_checkpoint

    checkpoint = _extracted(target, file, built.parent, report)
    with _errors_naming(target, file, checkpoint):
        kind = official.detect_kind(read_checkpoint(checkpoint).state) if target.kind == AUTO else target.kind
    tokenizer = None
    if kind in KINDS_WITH_TEXT:
        needed = find_target(TOKENIZER, revision=None, pinned=read_pins().get(TOKENIZER), pin=False)
        try:
            found = fetch_first(needed, force=force, report=report)
        except RefcliError as problem:
            problem.message = f"the tokenizer that this model needs cannot be fetched: {problem.message}"
            raise
        tokenizer, origin["tokenizer"] = found.path, pin_of(needed, found).model_dump()
    report(f"converting {checkpoint.name}")
    with _errors_naming(target, file, checkpoint):
        (convert or official.convert)(checkpoint, kind=kind, out=built, tokenizer=tokenizer, origin=origin)
    for note in _notes(target.entry, built):
        report(note)


def _extracted(target: PullTarget, file: HubFile, temporary: Path, report: Report) -> Path:
    """The checkpoint itself, extracted if it is in a zip."""
    member = target.uris[0].member
    if not is_zip_of_weights(file.path):
        if member is not None:
            raise WeightsError(
                "this is not a zip of checkpoints", where=str(file.path), hint=f"it should hold {member}"
            )
        return file.path
    out = temporary / "checkpoint.pth"
    report(f"extracted {extract_checkpoint(file.path, member, out)} from {file.path.name}")
    return out


@contextmanager
def _errors_naming(target: PullTarget, file: HubFile, copy: Path) -> Iterator[None]:
    """Make errors about a temporary copy name the downloaded file."""
    try:
        yield
    except WeightsError as problem:
        if (problem.where or "").startswith((str(copy), "state dict")):
            problem.where = f"{target.uris[0]} ({file.path})"
        raise


def _notes(entry: CatalogEntry | None, built: Path) -> Iterator[str]:
    """The notes of the conversion, and where the converted weights differ from the catalogue."""
    meta = read_meta(built)
    yield from meta.get("notes", ())
    if entry is None:
        return
    config = read_config(built)
    tower = config.get("tower", config)
    size = tower.get("image_size")
    tasks = [name for task, name in TASK_NAMES.items() if task in entry.tasks]
    for what, found, stated in (
        ("image size", size[0] if isinstance(size, list) else size, entry.image_size),
        ("width", tower.get("dim"), WIDTHS.get(entry.tower or "")),
        ("tasks", meta.get("tasks"), tasks),
    ):
        if None not in (found, stated) and found != stated:
            yield f"differs from the catalogue: {what} {found} instead of {stated}"


def _write_pins(name: str, origin: Mapping[str, Any]) -> None:
    """Pin the file of the weights, and that of their tokenizer if it has no pin yet."""
    write_pin(name, Pin(**{key: origin[key] for key in Pin.model_fields}))
    if origin["tokenizer"] is not None and TOKENIZER not in read_pins():
        write_pin(TOKENIZER, Pin(**origin["tokenizer"]))
