"""What a data-loading process does first."""

from __future__ import annotations

import signal

import cv2


def init_worker(worker: int) -> None:
    """Keep one data-loading process to one thread, and let only the main process answer signals.

    A terminal sends Ctrl-C to the whole process group; a loader that died of it would break the step that the main
    process still wants to finish. A loader ends when the main process closes its queue or is gone.
    """
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
