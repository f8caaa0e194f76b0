"""Fetch one file from the Hugging Face Hub into the Hub's own cache, with resumed and verified downloads."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from refcli.errors import DownloadError, RefcliError, WeightsError
from refcli.files import file_sha256, write_atomically
from refcli.weights.locate import HubUri, home

SHA256 = re.compile(r"[0-9a-f]{64}")
"""The Hub's etag of a large file is its sha256."""
COMMIT = re.compile(r"[0-9a-f]{40}")
ETAG = re.compile(r"[0-9A-Za-z_-][0-9A-Za-z._-]{0,127}")
"""An etag that is safe as a file name."""
PARTIAL_SUFFIX = ".refcli-partial"
SPARE_BYTES = 1 << 30
"""Left free on the disk after a download; the size of the file if that is less."""
UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
Report = Callable[[str], None]
"""Receives one line of progress."""


class NotOnHubError(DownloadError):
    """The Hub has no such repository, revision or file, or hides it."""


@dataclass(frozen=True)
class HubFile:
    """A file in the Hub's cache, with its exact origin."""

    path: Path
    repo: str
    revision: str
    """The commit, 40 hex digits."""
    sha256: str
    num_bytes: int


@dataclass(frozen=True)
class _CacheSlot:
    """Where the Hub's cache keeps one file of one commit: a link in a snapshot to a blob that the etag names.

    huggingface_hub offers no function that adds a file to its cache. `hf_hub_download` would add it, but it discards
    partial downloads (since 1.31), and the path that it writes to is whatever etag the server sends at that moment.
    The layout is documented: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    """

    link: Path
    """As `hf_hub_download(dry_run=True)` returns it."""
    repo: Path
    """The folder of the repository."""

    def blob(self, etag: str) -> Path:
        return self.repo / "blobs" / etag

    def fill(self, blob: Path) -> None:
        """Link to a blob, or move it to the link's place on a disk without links."""
        self.link.parent.mkdir(parents=True, exist_ok=True)
        self.link.unlink(missing_ok=True)
        try:
            self.link.symlink_to(os.path.relpath(blob, self.link.parent))
        except OSError:
            blob.replace(self.link)

    def etag(self) -> str:
        """The name of the blob; empty on a disk without links."""
        return self.link.readlink().name if self.link.is_symlink() else ""

    def record_revision(self, revision: str, commit: str) -> None:
        """Record the commit of a branch or tag, for offline use; skipped in a read-only cache."""
        ref = self.repo / "refs" / revision
        with suppress(OSError):
            if revision != commit and not (ref.is_file() and ref.read_text() == commit):
                ref.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(ref, commit.encode())


def fetch(
    uri: HubUri, *, sha256: str | None = None, force: bool = False, report: Report = lambda line: None
) -> HubFile:
    """Find a file in the Hub's cache, or download it there, and verify it.

    A download that fails keeps what it has received, and the next call resumes it.

    Args:
        uri: the file.
        sha256: its expected checksum, if known.
        force: download it even if it is cached.
        report: receives a line of progress now and then.

    Raises:
        NotOnHubError: no such repository, revision or file.
        DownloadError: no access, no connection, an interrupted download, or no room for it.
        WeightsError: the checksum differs, or the server sends names that a Hub never uses.
    """
    prepare_library()
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.file_download import repo_folder_name

    downloaded: str | None = None
    with explain_download_errors(uri):
        found = hf_hub_download(uri.repo, uri.file, revision=uri.revision, dry_run=True)
        if not COMMIT.fullmatch(found.commit_hash):
            raise _unsafe_name(uri, "commit", found.commit_hash)
        repo = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=uri.repo, repo_type="model")
        slot = _CacheSlot(Path(found.local_path), repo)
        if force or not slot.link.exists():
            downloaded = _download(uri, found.commit_hash, slot, sha256=sha256, force=force, report=report)
        slot.record_revision(uri.revision or constants.DEFAULT_REVISION, found.commit_hash)
    etag = slot.etag()
    digest = downloaded if downloaded and downloaded == etag else file_sha256(slot.link)
    if SHA256.fullmatch(etag) and etag != digest:
        raise WeightsError(
            "the cached file is damaged", where=str(slot.link), hint=f"pull again with --force (its sha256 is {digest})"
        )
    if sha256 is not None and digest != sha256:
        raise _other_file(uri, digest, sha256)
    return HubFile(slot.link, uri.repo, found.commit_hash, digest, slot.link.stat().st_size)


def prepare_library() -> None:
    """Import huggingface_hub with the variables that it reads when it is imported: no telemetry, and a cache folder.

    Raises:
        DownloadError: HF_ENDPOINT is not an address.
    """
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if os.path.expanduser("~") == "~" and "XDG_CACHE_HOME" not in os.environ:  # noqa: PTH111
        os.environ.setdefault("HF_HOME", str(home() / "huggingface"))  # otherwise it creates a folder called ~
    try:
        from huggingface_hub import constants
    except ValueError as problem:  # huggingface_hub parses the variable when it is imported
        raise DownloadError(
            f"HF_ENDPOINT is not an address: {problem}", where=os.environ.get("HF_ENDPOINT")
        ) from problem
    constants.HF_HUB_DISABLE_TELEMETRY = True  # where it was imported before the variable was set


def _download(
    uri: HubUri, commit: str, slot: _CacheSlot, *, sha256: str | None, force: bool, report: Report
) -> str | None:
    """Download the file into its slot of the cache.

    Returns:
        Its sha256, if the Hub states it and the file was verified.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, not in __all__

    url = hf_hub_url(uri.repo, uri.file, revision=commit)
    facts = get_hf_file_metadata(url)
    if facts.etag is None:
        raise DownloadError("the Hub does not identify this file", where=str(uri), hint="is HF_ENDPOINT right?")
    if not ETAG.fullmatch(facts.etag):
        raise _unsafe_name(uri, "file", facts.etag)
    states_sha256 = SHA256.fullmatch(facts.etag) is not None
    if sha256 is not None and states_sha256 and facts.etag != sha256:
        raise _other_file(uri, facts.etag, sha256)
    blob, partial = slot.blob(facts.etag), slot.blob(facts.etag + PARTIAL_SUFFIX)
    blob.parent.mkdir(parents=True, exist_ok=True)
    with wait_for(FileLock(f"{partial}.lock"), report, f"another refcli is downloading {uri.file}; waiting for it"):
        if blob.exists() and not force:
            slot.fill(blob)
            return None
        if force or (partial.exists() and facts.size is not None and partial.stat().st_size > facts.size):
            partial.unlink(missing_ok=True)
        done = partial.stat().st_size if partial.exists() else 0
        _check_space(uri, blob.parent, facts.size or 0, done)
        if done:
            report(f"continuing {uri.file} after {_size(done)}")
        with partial.open("ab") as file:
            http_get(
                url,
                file,
                resume_size=done,
                headers=build_hf_headers(),
                expected_size=facts.size,
                displayed_filename=uri.file,
            )
        if states_sha256 and (digest := file_sha256(partial)) != facts.etag:
            partial.unlink()
            raise WeightsError(
                "the file arrived damaged and was deleted",
                where=str(uri),
                hint=f"pull again (sha256 {digest}, the Hub states {facts.etag})",
            )
        partial.replace(blob)
        slot.fill(blob)
        return facts.etag if states_sha256 else None


@contextmanager
def wait_for(lock: FileLock, report: Report, message: str) -> Iterator[None]:
    """Hold a lock; `message` is reported if another process holds it."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report(message)
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


def _unsafe_name(uri: HubUri, what: str, name: str) -> WeightsError:
    return WeightsError(
        f"the server gives the {what} a name that the Hub never uses: {name[:200]!a}",
        where=str(uri),
        hint="nothing was written; is HF_ENDPOINT a server that you trust?",
    )


def _other_file(uri: HubUri, found: str, wanted: str) -> WeightsError:
    return WeightsError(
        "this is not the expected file: the checksums differ",
        where=f"{uri}: sha256 {found}, expected {wanted}",
        hint="if you trust the new file, accept it with `--revision REVISION --pin`",
    )


class HubAddress(Protocol):
    """A place in a repository on the Hub; its text is its hf:// address."""

    @property
    def repo(self) -> str:
        """ORGANISATION/REPOSITORY."""

    @property
    def revision(self) -> str | None:
        """A branch, tag or commit; None for the default branch."""

    @property
    def file(self) -> str:
        """The file or folder in the repository."""

    @property
    def page(self) -> str:
        """Its repository below the address of the Hub, such as `datasets/ORGANISATION/REPOSITORY`."""


@contextmanager
def explain_download_errors(uri: HubAddress) -> Iterator[None]:
    """Turn every failure between this machine and the Hub into a DownloadError with a hint."""
    try:
        yield
    except RefcliError:
        raise
    except Exception as problem:
        # Any exception: the HTTP library of huggingface_hub, and so the classes that it raises, differ by version.
        raise _explained(problem, uri) from problem


def _explained(problem: Exception, uri: HubAddress) -> DownloadError:
    from huggingface_hub import constants, errors

    where, page = str(uri), f"{constants.ENDPOINT}/{uri.page}"
    if isinstance(problem, errors.LocalEntryNotFoundError) and isinstance(problem.__cause__, Exception):
        problem = problem.__cause__
    status = problem.response.status_code if isinstance(problem, errors.HfHubHTTPError) else None
    if isinstance(problem, errors.HFValidationError):
        return NotOnHubError(
            f"{uri.repo} is not a valid repository name", where=where, hint="write ORGANISATION/REPOSITORY"
        )
    if isinstance(problem, errors.GatedRepoError):
        return DownloadError(
            "the owners of this repository must grant you access first",
            where=where,
            hint=f"ask for access at {page}, then set HF_TOKEN (or run `hf auth login`) and pull again",
        )
    if isinstance(problem, errors.RepositoryNotFoundError):
        return NotOnHubError(
            f"there is no repository {uri.repo}, or it is private",
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
            hint=f"unset HF_HUB_OFFLINE, or copy {constants.HF_HUB_CACHE} from a machine that has the file",
        )
    if isinstance(problem, errors.EntryNotFoundError) and not isinstance(problem, errors.LocalEntryNotFoundError):
        return NotOnHubError(f"{uri.repo} has no file {uri.file!r}", where=where, hint=f"see {page}/tree/main")
    if status in (401, 403):
        return DownloadError(
            f"the Hub denies access ({status})",
            where=where,
            hint=f"set HF_TOKEN to a token that may read {uri.repo}; see {page}",
        )
    return _explained_transfer(problem, status, where=where)


def _explained_transfer(problem: Exception, status: int | None, *, where: str) -> DownloadError:
    """The error for a download that failed although the file exists and may be read."""
    from huggingface_hub import constants

    reason = (" ".join(str(problem).split()) or type(problem).__name__)[:200]
    if status is None and isinstance(problem, OSError) and problem.errno is not None:
        return DownloadError(
            f"the cache cannot be written: {problem.strerror}",
            where=problem.filename or constants.HF_HUB_CACHE,
            hint="set HF_HUB_CACHE to a folder with room",
        )
    if status is not None:
        return DownloadError(
            f"the Hub answered with an error ({status})",
            where=where,
            hint=f"pull again later; the part that has arrived is kept ({reason})",
        )
    return DownloadError(
        "the download was interrupted, or the Hub cannot be reached",
        where=where,
        hint=f"check the connection and HF_ENDPOINT, then pull again; the part that has arrived is kept ({reason})",
    )
