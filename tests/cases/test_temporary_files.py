"""Files appear complete, with the permissions of the umask, never through a link; stale temporaries are removed."""

import os
import signal
import stat
import subprocess
import sys
import time

import pytest

from refcli.files import (
    TEMPORARY_SUFFIX,
    is_plain_name,
    path_inside,
    remove_stale_temporaries,
    temporary_file,
    temporary_folder,
    write_atomically,
)

WAITS = """
import sys
from pathlib import Path
from refcli.files import temporary_file, temporary_folder
with temporary_file(Path(sys.argv[1]) / "a.bin") as file, temporary_folder(Path(sys.argv[1]) / "weights") as folder:
    file.write_bytes(b"half")
    (folder / "model.safetensors").write_bytes(b"half")
    print("ready", flush=True)
    sys.stdin.read()
"""

needs_locks = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")


def temporaries(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.endswith(TEMPORARY_SUFFIX))


@pytest.fixture
def writing(tmp_path):
    """A running process with a temporary file and a temporary folder in `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


@needs_locks
def test_temporaries_of_a_killed_process_are_removed_by_the_next_one(tmp_path, writing):
    writing.send_signal(signal.SIGKILL)
    writing.wait()
    assert len(temporaries(tmp_path)) == 2

    write_atomically(tmp_path / "b.bin", b"whole")

    assert [path.name for path in tmp_path.iterdir()] == ["b.bin"]


@needs_locks
def test_temporaries_of_a_running_process_stay(tmp_path, writing):
    left = temporaries(tmp_path)

    remove_stale_temporaries(tmp_path)

    assert temporaries(tmp_path) == left
    writing.communicate("")
    assert list(tmp_path.iterdir()) == []


@needs_locks
def test_only_temporaries_of_refcli_and_no_links_are_removed(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("mine")
    others = (".a.bin.part", f".a.bin.0123{TEMPORARY_SUFFIX}", f"a.0123456789abcdef{TEMPORARY_SUFFIX}")
    for name in others:
        (tmp_path / name).write_text("mine")
    link = tmp_path / f".x.0123456789abcdef{TEMPORARY_SUFFIX}"
    link.symlink_to(tmp_path / "precious")
    elsewhere = tmp_path / f".y.01234567-0123456789abcdef{TEMPORARY_SUFFIX}"
    elsewhere.write_text("another machine may be writing this")
    left_behind = tmp_path / f".z.01234567-0123456789abcdef{TEMPORARY_SUFFIX}"
    left_behind.write_text("another machine was writing this")
    two_days_ago = time.time() - 2 * 86_400
    os.utime(left_behind, (two_days_ago, two_days_ago))
    (tmp_path / f".w.0123456789abcdef{TEMPORARY_SUFFIX}").write_text("left behind here")

    remove_stale_temporaries(tmp_path)

    assert {path.name for path in tmp_path.iterdir()} == {"precious", link.name, elsewhere.name, *others}
    assert (tmp_path / "precious" / "file").read_text() == "mine"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "file_mode", "folder_mode"), [(0o077, 0o600, 0o700), (0o027, 0o640, 0o750)])
def test_permissions_follow_the_umask(tmp_path, umask, file_mode, folder_mode):
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "a.json", b"{}")
        with temporary_folder(tmp_path / "folder") as folder:
            folder.replace(tmp_path / "folder")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == file_mode
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == folder_mode


def test_a_link_at_the_target_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "a.json").symlink_to(tmp_path / "victim")

    write_atomically(tmp_path / "a.json", b"new")

    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "a.json").is_symlink()
    assert (tmp_path / "a.json").read_bytes() == b"new"


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(RuntimeError), temporary_file(tmp_path / "a.json") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"


def test_the_longest_name_that_a_file_system_allows_can_be_written(tmp_path):
    for name in ("x" * 255, "é" * 127):
        write_atomically(tmp_path / name, b"")
        assert (tmp_path / name).is_file()


@pytest.mark.parametrize("name", ["train", "my set", "val+test", "train.1-of-4.parquet", "été", "猫" * 60, "a..b"])
def test_plain_names_are_accepted(name):
    assert is_plain_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "a/b",
        "/a",
        "a\\b",
        "C:",
        "a\0",
        "a\n",
        "\x1b[31m",
        "\ud83d",
        "\u202ea",
        "x" * 201,
        "猫" * 67,
    ],
)
def test_names_that_are_not_plain_are_rejected(name):
    assert not is_plain_name(name)


def test_a_name_from_a_file_stays_inside_its_folder(tmp_path):
    store = tmp_path / "store"
    (store / "toy").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (store / "linked").symlink_to(tmp_path / "elsewhere")
    (store / "toy" / "linked.parquet").symlink_to(tmp_path / "elsewhere" / "a.parquet")
    (tmp_path / "store_link").symlink_to(store)
    assert path_inside(store, "toy/train.parquet") == store / "toy" / "train.parquet"
    assert path_inside(tmp_path / "store_link", "toy/new/a") == tmp_path / "store_link" / "toy" / "new" / "a"
    for name in (
        "linked/a.parquet",
        "toy/linked.parquet",
        "../elsewhere/a",
        "toy/../a",
        f"{store}/toy",
        "toy//a",
        "toy/./a",
    ):
        assert path_inside(store, name) is None, name
