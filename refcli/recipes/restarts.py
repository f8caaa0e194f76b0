"""What a process goes on with that takes the place of a crashed one."""

from __future__ import annotations

import os
from pathlib import Path

from refcli.engine.checkpointing.run_dir import RunDir
from refcli.engine.distributed.launching import is_restart

LAUNCH_VARIABLE = "TORCHELASTIC_RUN_ID"
"""What torchrun (and `--nproc`) calls all processes of one launch, those that are started again among them."""
LAUNCH = "launch"
"""Key of env.json."""


def launch_facts() -> dict[str, str | None]:
    """What env.json says about the launch that began a run."""
    return {LAUNCH: os.environ.get(LAUNCH_VARIABLE)}


def takes_over(out: Path) -> bool:
    """Whether this process takes the place of one that crashed after it had begun the run in `out`.

    A run of an earlier launch is none: whoever gave `--force` wants it away, and the crash may have come before that.
    """
    if not (is_restart() and (out / "run.yaml").is_file()):
        return False
    facts = RunDir(out).facts()
    return LAUNCH in facts and facts[LAUNCH] == os.environ.get(LAUNCH_VARIABLE)
