"""A directory belongs to one run at a time, and is free when that run's process has ended."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch

from refcli.engine.checkpointing.run_lock import close_inherited_locks, lock_run_directory
from refcli.engine.distributed.world import World
from refcli.errors import UsageError

ALONE = World(0, 1, torch.device("cpu"))


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path):
    with lock_run_directory(tmp_path / "run", ALONE):
        with (
            pytest.raises(UsageError, match="another process is training"),
            lock_run_directory(tmp_path / "run", ALONE),
        ):
            pass
        with lock_run_directory(tmp_path / "other", ALONE):
            pass
        (tmp_path / "run" / "run.yaml").touch()
    with lock_run_directory(tmp_path / "run", ALONE):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "a directory that stayed empty is removed"


def test_a_killed_run_releases_its_lock_while_its_loaders_still_run(tmp_path):
    ready, notify = os.pipe()
    main = os.fork()
    if not main:
        with lock_run_directory(tmp_path / "run", ALONE):
            (tmp_path / "run" / "run.yaml").touch()
            loader = os.fork()
            if not loader:
                close_inherited_locks()
                os.write(notify, b"%d" % os.getpid())
            time.sleep(60)
        os._exit(0)
    loader = int(os.read(ready, 20))
    try:
        with pytest.raises(UsageError), lock_run_directory(tmp_path / "run", ALONE):
            pass
        os.kill(main, signal.SIGKILL)
        os.waitpid(main, 0)
        with lock_run_directory(tmp_path / "run", ALONE):
            pass
    finally:
        os.kill(loader, signal.SIGKILL)


def test_a_path_that_cannot_be_locked_is_no_error(tmp_path):
    (tmp_path / "file").touch()
    with lock_run_directory(tmp_path / "file", ALONE):
        pass
    assert (tmp_path / "file").is_file()
