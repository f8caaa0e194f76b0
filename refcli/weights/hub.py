"""One file from the Hugging Face hub into the hub's own cache: resumed where it broke off, checked, explained."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from refcli.errors import DownloadError, RefcliError, WeightsError
from refcli.files import file_sha256, write_atomically
from refcli.weights.locate import HubUri, home

SHA256 = re.compile(r"[0-9a-f]{64}")
"""The hub's etag of a large file is its sha256."""
COMMIT = re.compile(r"[0-9a-f]{40}")
ETAG = re.compile(r"[0-9A-Za-z_-][0-9A-Za-z._-]{0,127}")
"""What may name a file in the cache: it leads nowhere else."""
PARTIAL_SUFFIX = ".refcli-partial"
SPARE_BYTES = 1 << 30
"""Left free on the disk after a download; as much as the file has, if that is less."""
DEFAULT_BRANCH = "main"
UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


class NotOnHubError(DownloadError):
    """The hub has no such repository, revision or file, or hides it."""


@dataclass(frozen=True)
class HubFile:
    """A file in the hub's cache, and exactly which one it is."""

    path: Path
    repo: str
    revision: str
    """The commit, 40 hex digits."""
    sha256: str
    num_bytes: int


def fetch(
    uri: HubUri, *, sha256: str | None = None, force: bool = False, say: Callable[[str], None] = lambda text: None
) -> HubFile:
    """Find a file in the hub's cache, or download it there, and check it.

    huggingface_hub (since 1.31) throws a broken download away; its parts are kept here and continued by the next call.

    Args:
        sha256: what the file must have, where that is known.
        force: download it even if it is cached.
        say: gets a line of talk now and then.

    Raises:
        NotOnHubError: no such repository, revision or file.
        DownloadError: no access, no connection, interrupted, no room.
        WeightsError: not the file that `sha256` stands for, or a hub that names files as no hub does.
    """
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # read when it is imported
    if os.path.expanduser("~") == "~" and "XDG_CACHE_HOME" not in os.environ:  # noqa: PTH111
        os.environ.setdefault("HF_HOME", str(home() / "huggingface"))  # else it makes a folder called ~
    try:
        from huggingface_hub import constants, hf_hub_download
    except ValueError as problem:  # it takes the variable apart when it is imported
        raise DownloadError(f"HF_ENDPOINT is no address: {problem}", where=os.environ.get("HF_ENDPOINT")) from problem
    constants.HF_HUB_DISABLE_TELEMETRY = True  # where it was imported before
    fresh: str | None = None
    with explained(uri):
        found = hf_hub_download(uri.repo, uri.file, revision=uri.revision, dry_run=True)
        if not COMMIT.fullmatch(found.commit_hash):
            raise _impossible(uri, "commit", found.commit_hash)
        path = Path(found.local_path)
        cache = path.parents[uri.file.count("/") + 2]
        if force or not path.exists():
            fresh = _download(uri, found.commit_hash, path, cache / "blobs", sha256=sha256, force=force, say=say)
        _note_branch(cache / "refs" / (uri.revision or DEFAULT_BRANCH), found.commit_hash)
    etag = path.readlink().name if path.is_symlink() else ""
    digest = fresh if fresh and fresh == etag else file_sha256(path)
    if SHA256.fullmatch(etag) and etag != digest:
        raise WeightsError(
            "the cached file is damaged", where=str(path), hint=f"pull again with --force (its sha256 is {digest})"
        )
    if sha256 is not None and digest != sha256:
        raise _other_file(uri, digest, sha256)
    return HubFile(path, uri.repo, found.commit_hash, digest, path.stat().st_size)


def _download(
    uri: HubUri,
    commit: str,
    pointer: Path,
    blobs: Path,
    *,
    sha256: str | None,
    force: bool,
    say: Callable[[str], None],
) -> str | None:
    """Download into the cache's `blobs`, and let `pointer`, where `hf_hub_download` looks for the file, lead there.

    Returns:
        The sha256, if the hub had stated it and it was right.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, not in __all__

    url = hf_hub_url(uri.repo, uri.file, revision=commit)
    facts = get_hf_file_metadata(url)
    if facts.etag is None:
        raise DownloadError("the hub does not say which file this is", where=str(uri), hint="is HF_ENDPOINT right?")
    if not ETAG.fullmatch(facts.etag):
        raise _impossible(uri, "file", facts.etag)
    if sha256 is not None and SHA256.fullmatch(facts.etag) and facts.etag != sha256:
        raise _other_file(uri, facts.etag, sha256)
    blobs.mkdir(parents=True, exist_ok=True)
    blob, partial = blobs / facts.etag, blobs / (facts.etag + PARTIAL_SUFFIX)
    with waiting(FileLock(f"{partial}.lock"), say, f"another refcli is downloading {uri.file}; waiting for it"):
        if blob.exists() and not force:
            _point(pointer, blob)
            return None
        if force or (partial.exists() and facts.size is not None and partial.stat().st_size > facts.size):
            partial.unlink(missing_ok=True)
        done = partial.stat().st_size if partial.exists() else 0
        _check_space(uri, blobs, facts.size or 0, done)
        if done:
            say(f"continuing {uri.file} after {_size(done)}")
        with partial.open("ab") as file:
            http_get(
                url,
                file,
                resume_size=done,
                headers=build_hf_headers(),
                expected_size=facts.size,
                displayed_filename=uri.file,
            )
        states_sha256 = SHA256.fullmatch(facts.etag) is not None
        if states_sha256 and (digest := file_sha256(partial)) != facts.etag:
            partial.unlink()
            raise WeightsError(
                "the file arrived damaged, and was thrown away",
                where=str(uri),
                hint=f"pull again (sha256 {digest}, the hub says {facts.etag})",
            )
        partial.replace(blob)
        _point(pointer, blob)
        return facts.etag if states_sha256 else None


def _point(pointer: Path, blob: Path) -> None:
    """As huggingface_hub does it; not by it, for it would ask the hub for the blob's name again, and believe it."""
    pointer.parent.mkdir(parents=True, exist_ok=True)
    pointer.unlink(missing_ok=True)
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:  # a disk without links
        blob.replace(pointer)


def _note_branch(ref: Path, commit: str) -> None:
    """Note where a branch stands, for whoever works offline; a cache that may only be read does without."""
    with suppress(OSError):
        if ref.name != commit and not (ref.is_file() and ref.read_text() == commit):
            ref.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(ref, commit.encode())


@contextmanager
def waiting(lock: FileLock, say: Callable[[str], None], text: str) -> Iterator[None]:
    """Hold a lock; says `text` if it has to wait for it."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(text)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _check_space(uri: HubUri, directory: Path, num_bytes: int, num_done: int) -> None:
    free, wanted, spare = shutil.disk_usage(directory).free, num_bytes - num_done, min(SPARE_BYTES, num_bytes)
    if free < wanted + spare:
        raise DownloadError(
            f"the disk has {_size(free)} left, {uri.file} needs {_size(wanted)} more and {_size(spare)} to spare",
            where=str(directory),
            hint="make room, or set HF_HUB_CACHE to another disk",
        )


def _size(num_bytes: int) -> str:
    unit, factor = next(((unit, factor) for unit, factor in UNITS if num_bytes >= factor), ("bytes", 1))
    return f"{num_bytes / factor:.{2 if factor > 1 else 0}f} {unit}"


def _impossible(uri: HubUri, what: str, name: str) -> WeightsError:
    return WeightsError(
        f"the hub gives the {what} a name that no hub would give: {name[:200]!a}",
        where=str(uri),
        hint="nothing was written; is HF_ENDPOINT a hub that you trust?",
    )


def _other_file(uri: HubUri, found: str, wanted: str) -> WeightsError:
    return WeightsError(
        "this is not the file that was expected: the checksums differ",
        where=f"{uri}: sha256 {found}, expected {wanted}",
        hint="if you trust the new file, accept it with `--revision REVISION --pin`",
    )


@contextmanager
def explained(uri: HubUri) -> Iterator[None]:
    """Turn everything that can go wrong between here and the hub into an error with advice."""
    try:
        yield
    except RefcliError:
        raise
    except Exception as problem:
        # Any exception: which HTTP library huggingface_hub stands on, and so what it raises, differs by version.
        raise explain(problem, uri) from problem


def explain(problem: Exception, uri: HubUri) -> DownloadError:
    """What a failure means to the user."""
    from huggingface_hub import constants, errors

    where, page = str(uri), f"{constants.ENDPOINT}/{uri.repo}"
    if isinstance(problem, errors.LocalEntryNotFoundError) and isinstance(problem.__cause__, Exception):
        problem = problem.__cause__
    status = problem.response.status_code if isinstance(problem, errors.HfHubHTTPError) else None
    if isinstance(problem, errors.HFValidationError):
        return NotOnHubError(f"{uri.repo} is no name of a repository", where=where, hint="ORGANISATION/REPOSITORY")
    if isinstance(problem, errors.GatedRepoError):
        return DownloadError(
            "only users whom the owners let in may download this",
            where=where,
            hint=f"ask for access at {page}, then set HF_TOKEN (or run `hf auth login`) and pull again",
        )
    if isinstance(problem, errors.RepositoryNotFoundError):
        return NotOnHubError(
            f"there is no repository {uri.repo} that you may see",
            where=where,
            hint="check the name; a private repository needs HF_TOKEN (or `hf auth login`)",
        )
    if isinstance(problem, errors.RevisionNotFoundError):
        return NotOnHubError(
            f"{uri.repo} has no revision {uri.revision!r}", where=where, hint=f"see {page}/commits/main"
        )
    if isinstance(problem, errors.OfflineModeIsEnabled):
        return DownloadError(
            "HF_HUB_OFFLINE is set, and the file is not in the cache",
            where=where,
            hint=f"unset HF_HUB_OFFLINE, or bring {constants.HF_HUB_CACHE} from a machine that has it",
        )
    if isinstance(problem, errors.EntryNotFoundError) and not isinstance(problem, errors.LocalEntryNotFoundError):
        return NotOnHubError(f"{uri.repo} has no file {uri.file!r}", where=where, hint=f"see {page}/tree/main")
    if status in (401, 403):
        return DownloadError(
            f"the hub refuses access ({status})",
            where=where,
            hint=f"set HF_TOKEN to a token that may read {uri.repo}; see {page}",
        )
    said = " ".join(str(problem).split()) or type(problem).__name__
    if status is None and isinstance(problem, OSError) and problem.errno is not None:
        return DownloadError(
            f"the cache cannot be written: {problem.strerror}",
            where=problem.filename or constants.HF_HUB_CACHE,
            hint="set HF_HUB_CACHE to a folder with room",
        )
    if status is not None:
        return DownloadError(
            f"the hub answered with an error ({status})",
            where=where,
            hint=f"pull again later, what has arrived is kept ({said[:200]})",
        )
    return DownloadError(
        "the download broke off or the hub cannot be reached",
        where=where,
        hint=f"check the connection and HF_ENDPOINT, then pull again: what has arrived is kept ({said[:200]})",
    )
