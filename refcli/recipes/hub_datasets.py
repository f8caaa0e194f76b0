"""Data sets on the Hugging Face Hub: an hf://datasets/... address becomes a folder or file in the Hub's cache."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from refcli.data.spec import load_spec
from refcli.errors import DataError, UsageError
from refcli.weights.hub import Report, explain_download_errors, prepare_library

SCHEME = "hf://datasets/"
ADDRESS_FORM = "hf://datasets/ORGANISATION/NAME[@REVISION][/FOLDER]"
_ADDRESS = re.compile(
    r"hf://datasets/(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/#?]+))?(?:/(?P<file>[^#?]*))?", re.ASCII
)
_PARQUET = "*.parquet"


@dataclass(frozen=True)
class DatasetAddress:
    """A data set on the Hub, or a folder or file of it."""

    repo: str
    revision: str | None = None
    """A branch, tag or commit; None for the default branch."""
    file: str = ""
    """Empty: the whole repository."""

    @property
    def page(self) -> str:
        """The repository below the address of the Hub."""
        return f"datasets/{self.repo}"

    @classmethod
    def parse(cls, text: str) -> DatasetAddress:
        """Read an address, percent-encoded or not.

        Raises:
            UsageError: it has another form, or leads out of the repository.
        """
        found = _ADDRESS.fullmatch(text)
        if found is None:
            raise UsageError("this is not the address of a data set on the Hub", where=text, hint=ADDRESS_FORM)
        repo, revision, file = (unquote(found[part] or "") for part in ("repo", "revision", "file"))
        file = file.strip("/")
        for name in filter(None, (repo, revision, file)):
            if any(part in ("", ".", "..") for part in name.split("/")) or set("\\\0*?[") & set(name):
                raise UsageError(f"{name!r} is not a name in a repository", where=text, hint=ADDRESS_FORM)
        return cls(repo, revision or None, file)

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{SCHEME}{self.repo}{revision}" + (f"/{self.file}" if self.file else "")


@dataclass(frozen=True)
class HubDataset:
    """A data set in the Hub's cache."""

    path: Path
    """A folder or file of the snapshot of one commit."""
    address: DatasetAddress
    commit: str
    """40 hex digits."""

    def origin(self) -> dict[str, str | None]:
        """The origin for the manifest of a store."""
        return {"repo": self.address.repo, "revision": self.address.revision, "commit": self.commit}


def fetch_dataset(
    text: str, *, names: Sequence[str] = (), download: bool = False, report: Report = lambda line: None
) -> HubDataset:
    """Find a data set in the Hub's cache, or download its files.

    Args:
        text: `hf://datasets/ORGANISATION/NAME[@REVISION][/FOLDER]`.
        names: known data sets whose files are wanted. Without them, a folder or file that the address names is wanted
            whole, and of a whole repository its Parquet files.
        download: whether missing files may be downloaded; without it nothing is sent.
        report: receives a line of progress now and then.

    Raises:
        UsageError: the address is malformed.
        DataError: the data set is not in the cache and `download` is False, or it has no such folder.
        DownloadError: no such repository or revision, no access, no connection, or no room.
    """
    address = DatasetAddress.parse(text)
    patterns = list(_patterns(address, names))
    folder = _download(address, patterns, report) if download else _cached(address, patterns)
    path = folder / address.file
    if not path.exists():
        raise DataError(
            f"{address.repo} has no {address.file}",
            where=text,
            hint="check the address" if download else "it may not be downloaded yet: add --download",
        )
    return HubDataset(path, address, folder.name)


def _patterns(address: DatasetAddress, names: Sequence[str]) -> Iterator[str]:
    """The patterns of the wanted files in a repository."""
    prefix = f"{address.file}/" if address.file else ""
    for name in names:
        spec = load_spec(name)
        for folder in (*(f"{one}/" for one in spec.folders), ""):
            for files in spec.files.values():
                yield from (f"{prefix}{folder}{file}{rest}" for file in files for rest in ("", ".gz", "/*"))
    if not names:
        yield from (address.file, f"{prefix}*") if address.file else (_PARQUET,)


def _download(address: DatasetAddress, patterns: Sequence[str], report: Report) -> Path:
    prepare_library()
    from huggingface_hub import HfApi, snapshot_download

    with explain_download_errors(address):
        report(f"looking for {address}")
        commit = HfApi().dataset_info(address.repo, revision=address.revision).sha
        report(f"downloading {address.repo} at {commit}")
        snapshot_download(address.repo, repo_type="dataset", revision=address.revision, allow_patterns=list(patterns))
        found = snapshot_download(
            address.repo, repo_type="dataset", revision=commit, allow_patterns=list(patterns), local_files_only=True
        )
    return Path(found)


def _cached(address: DatasetAddress, patterns: Sequence[str]) -> Path:
    prepare_library()
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        with explain_download_errors(address):
            try:
                found = snapshot_download(
                    address.repo,
                    repo_type="dataset",
                    revision=address.revision,
                    allow_patterns=list(patterns),
                    local_files_only=True,
                )
            except LocalEntryNotFoundError as problem:
                raise DataError(
                    f"{address.repo} is not on this machine yet",
                    where=f"{address} in {constants.HF_HUB_CACHE}",
                    hint="add --download, or download it with `hf download --repo-type dataset`",
                ) from problem
    except OSError as problem:
        raise DataError("the Hub's cache cannot be read", where=str(address), hint=str(problem)) from problem
    return Path(found)
