"""Which file on the hub a name or an address asks for, and the first repository that has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from refcli.errors import UsageError
from refcli.weights.catalog import Catalog, CatalogEntry
from refcli.weights.hub import HubFile, NotOnHubError, fetch
from refcli.weights.locate import SCHEME, HubUri
from refcli.weights.pins import Pin

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
