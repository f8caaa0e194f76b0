"""A small Hugging Face Hub on loopback, with the endpoints, headers, refusals and failures that a download meets."""

from __future__ import annotations

import hashlib
import io
import json
import random
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import sentencepiece

import refcli.text
from refcli.weights.locate import home

DEFAULT_BRANCH = "main"
REPO, MIRROR = "linhuixiao/OneRef", "xiaolinhui/OneRef"
NAME, FILE = "oneref-large-rec-refcoco", "rec_single_dataset_finetuning_large_unc.pth"
ZIPPED, ZIP = "oneref-base-rec-refcoco", "rec_single_dataset_finetuning_base.zip"
SPM = "beit3_checkpoints/beit3.spm"
"""Repositories, and names with their files, as in the catalogue; the last file is the tokenizer's."""
CHUNK = 1000
"""Bytes that the client writes at a time in these tests; 10 MB otherwise."""


def noise(seed: int, size: int = 20_000) -> bytes:
    """Incompressible content."""
    return random.Random(seed).randbytes(size)


def sha256(content: bytes) -> str:
    """In hex, as the Hub's etags."""
    return hashlib.sha256(content).hexdigest()


def sentencepiece_file(num_pieces: int, *, num_unused: int = 0) -> bytes:
    """The packaged tokenizer with unused words up to `num_pieces`, and bytes that no tokenizer reads."""
    packaged = (Path(refcli.text.__file__).parent / "builtin.spm").read_bytes()
    num_there = sentencepiece.SentencePieceProcessor(model_proto=packaged).get_piece_size()
    score = b"\x15" + struct.pack("<f", -20)
    pieces = (_field(1, _field(1, f"unused{number}".encode()) + score) for number in range(num_pieces - num_there))
    return packaged + b"".join(pieces) + _field(1000, random.Random(5).randbytes(num_unused))


def _field(number: int, content: bytes) -> bytes:
    """A repeatable field of a protocol buffer."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number % 128 + 128]) + _varint(number // 128)


TOKENIZER = sentencepiece_file(64_000)
"""Replaces beit3.spm."""


def checkpoint(seed: int) -> bytes:
    """A file that is recognised as a BEiT-3 checkpoint, but cannot be converted."""
    import torch

    content = io.BytesIO()
    torch.save({"model": {"beit3.noise": torch.tensor(list(noise(seed, 5000)))}}, content)
    return content.getvalue()


def left_behind() -> list[str]:
    """The files in REFCLI_HOME/weights, apart from lock files."""
    return sorted(path.name for path in (home() / "weights").iterdir() if path.suffix != ".lock")


def converted(path: Path, *, kind: str, out: Path, tokenizer: Path | None, origin: dict[str, object]) -> None:
    """Replaces the real conversion, which has its own tests: the unchanged checkpoint with its origin."""
    out.mkdir()
    (out / "model.safetensors").write_bytes(path.read_bytes())
    (out / "config.yaml").write_text("tower: {dim: 8}\n")
    if tokenizer is not None:
        (out / "tokenizer.spm").write_bytes(tokenizer.read_bytes())
    meta = {"kind": kind, "files": {"model.safetensors": None}, "origin": origin}
    (out / "meta.json").write_text(json.dumps(meta))


@dataclass(frozen=True)
class Request:
    """One request as it arrived."""

    server: str
    """`hub`, or `storage`, to which the Hub redirects requests for large files."""
    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class Repository:
    """Commits, newest last; each is a complete tree."""

    commits: list[dict[str, bytes]] = field(default_factory=list)
    gated_to: str | None = None
    """The only token that may read it."""

    def commit_of(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        for number, tree in enumerate(self.commits):
            if revision == commit_name(number):
                return revision, tree
        if revision == DEFAULT_BRANCH and self.commits:
            return commit_name(len(self.commits) - 1), self.commits[-1]
        return None


def commit_name(number: int) -> str:
    """40 hex digits."""
    return hashlib.sha1(f"commit {number}".encode()).hexdigest()


class FakeHub:
    """The state that the two servers share; change it between pulls."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.break_after: int | None = None
        """Storage closes the connection after so many bytes of a response."""
        self.breaks_left = 0
        """Number of responses cut off like that; then storage answers 503 if `then_down`, else normally."""
        self.then_down = False
        self.stall_after: int | None = None
        """Storage sends so many bytes and then nothing, until `released`."""
        self.stalled, self.released = threading.Event(), threading.Event()
        self.corrupt = False
        """Storage flips a bit of the first byte."""
        self.etag: str | None = None
        """The etag of every file, in place of its sha256, after so many `honest_answers`."""
        self.honest_answers = 0
        self.commit_header: str | None = None
        """The name of every commit, in place of the true one."""
        self.num_bytes_sent = 0
        self.url = ""
        self.storage_url = ""

    def repository(self, repo: str) -> Repository:
        return self.repositories.setdefault(repo, Repository())

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        """Add a commit that has exactly these files; returns its name."""
        commits = self.repository(repo).commits
        commits.append(files)
        return commit_name(len(commits) - 1)

    def downloads(self) -> list[Request]:
        """Requests for the content of files."""
        return [request for request in self.requests if request.server == "storage" and request.method == "GET"]

    def content(self, digest: str) -> bytes:
        for repository in self.repositories.values():
            for tree in repository.commits:
                for content in tree.values():
                    if sha256(content) == digest:
                        return content
        raise KeyError(digest)


@contextmanager
def running() -> Iterator[FakeHub]:
    """A Hub and its storage on two ports, which are closed at the end."""
    hub = FakeHub()
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub, kind)) for kind in (_HubHandler, _StorageHandler)]
    hub.url, hub.storage_url = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        for server in servers:
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()


def _handler(hub: FakeHub, kind: type[_Handler]) -> type[_Handler]:
    return type(kind.__name__, (kind,), {"hub": hub})


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    name: str
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing: `requests` is the log."""

    def do_HEAD(self) -> None:
        self._note_and_answer()

    def do_GET(self) -> None:
        self._note_and_answer()

    def _note_and_answer(self) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.hub.requests.append(Request(self.name, self.command, self.path, self.headers.get("Range"), token))
        self.answer(token)

    def answer(self, token: str | None) -> None:
        raise NotImplementedError

    def send(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": "0", **headers}.items():
            self.send_header(key, value)
        self.end_headers()


class _HubHandler(_Handler):
    name = "hub"

    def answer(self, token: str | None) -> None:
        path = unquote(self.path.partition("?")[0]).strip("/")
        if path.startswith("api/datasets/"):
            return self.describe(path.removeprefix("api/datasets/").split("/"), token)
        parts = path.removeprefix("datasets/").split("/", 4)
        if len(parts) != 5 or parts[2] != "resolve":
            return self.send(404, {"X-Error-Code": "NotFound"})
        found = self.find("/".join(parts[:2]), parts[3], token)
        if found is None:
            return None
        commit, tree = found
        if parts[4] not in tree:
            return self.send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        content = tree[parts[4]]
        digest = etag = sha256(content)
        if self.hub.etag is not None:
            etag = digest if self.hub.honest_answers > 0 else self.hub.etag
            self.hub.honest_answers -= 1
        return self.send(
            302,
            {
                "X-Repo-Commit": self.hub.commit_header or commit,
                "X-Linked-Etag": f'"{etag}"',
                "X-Linked-Size": str(len(content)),
                "Location": f"{self.hub.storage_url}/{digest}",
            },
        )

    def find(self, repo: str, revision: str, token: str | None) -> tuple[str, dict[str, bytes]] | None:
        """A commit; None if the request was refused."""
        repository = self.hub.repositories.get(repo)
        if token == "wrong":
            return self.send(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        if repository is None:
            return self.send(401 if token is None else 404, {"X-Error-Code": "RepoNotFound"})
        if repository.gated_to is not None and token != repository.gated_to:
            return self.send(401 if token is None else 403, {"X-Error-Code": "GatedRepo"})
        found = repository.commit_of(revision)
        return self.send(404, {"X-Error-Code": "RevisionNotFound"}) if found is None else found

    def describe(self, parts: list[str], token: str | None) -> None:
        """A data set: `ORG/NAME[/revision/REVISION]`, or the list of its files: `ORG/NAME/tree/REVISION`."""
        found = self.find("/".join(parts[:2]), parts[3] if len(parts) > 3 else DEFAULT_BRANCH, token)
        if found is None:
            return
        commit, tree = found
        files = [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in tree.items()
        ]
        answer = json.dumps(files if "tree" in parts else {"id": "/".join(parts[:2]), "sha": commit}).encode()
        self.send(200, {"Content-Length": str(len(answer)), "Content-Type": "application/json"})
        self.wfile.write(answer)


class _StorageHandler(_Handler):
    name = "storage"

    def answer(self, token: str | None) -> None:
        hub = self.hub
        if hub.breaks_left == 0 and hub.break_after is not None and hub.then_down:
            return self.send(503, {})
        content = hub.content(self.path.strip("/"))
        if hub.corrupt:
            content = bytes([content[0] ^ 1]) + content[1:]
        start = 0
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        total, content = len(content), content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.end_headers()
        if hub.break_after is not None and hub.breaks_left > 0:
            hub.breaks_left -= 1
            self._send(content[: hub.break_after])
            self.close_connection = True
        elif hub.stall_after is not None:
            self._send(content[: hub.stall_after])
            hub.stalled.set()
            hub.released.wait(60)
            self.close_connection = True
        else:
            self._send(content)
        return None

    def _send(self, content: bytes) -> None:
        self.wfile.write(content)
        self.wfile.flush()
        self.hub.num_bytes_sent += len(content)
