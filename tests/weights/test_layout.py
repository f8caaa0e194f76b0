"""A weights directory is written completely or not at all."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from refcli.errors import RefcliError
from refcli.weights.layout import exit_on_sigterm, new_directory

SLOW = """
import sys, time
from pathlib import Path
from refcli.weights.layout import new_directory
with new_directory(Path(sys.argv[1])) as folder:
    (folder / "model.safetensors").write_bytes(b"half")
    print("half", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a program without asking it")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_leaves_no_partial_files(tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(tmp_path / "w")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    assert [path.name.startswith(".w.") for path in tmp_path.iterdir()] == [True]

    process.send_signal(number)

    assert process.wait(timeout=60) != 0
    assert list(tmp_path.iterdir()) == []


def test_a_custom_handler_of_sigterm_is_kept(tmp_path):
    noted: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: noted.append(number))
    try:
        with exit_on_sigterm():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)

    assert noted == [signal.SIGTERM]


def test_the_default_handler_is_restored_and_other_threads_change_no_handler():
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    seen: list[object] = []

    def look() -> None:
        with exit_on_sigterm():
            seen.append(signal.getsignal(signal.SIGTERM))

    try:
        with pytest.raises(SystemExit) as left, exit_on_sigterm():
            signal.raise_signal(signal.SIGTERM)
        seen.append(signal.getsignal(signal.SIGTERM))
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    finally:
        signal.signal(signal.SIGTERM, before)

    assert left.value.code == 128 + signal.SIGTERM
    assert seen == [signal.SIG_DFL, signal.SIG_DFL]


def test_a_link_loop_is_reported_as_a_write_error(tmp_path):
    (tmp_path / "w").symlink_to(tmp_path / "w")

    with pytest.raises(RefcliError, match="cannot be written"), new_directory(tmp_path / "w" / "deep"):
        raise AssertionError("there is nowhere to write")
