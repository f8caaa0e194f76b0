"""Scenes per second of `refcli prepare-data synthetic`, start-up, expressions, masks and files included.

python benchmarks/synthetic.py [SCENES] [WORKERS]
"""

import sys
import tempfile
import time
from pathlib import Path

from refcli.data.sources.synthetic import write_synthetic


def main(scenes: int = 6000, workers: int = 2) -> None:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        write_synthetic(Path(folder), size=scenes, seed=1, splits=["train"], workers=workers)
        seconds = time.perf_counter() - start
    print(f"{scenes} scenes, {workers} workers: {seconds:.1f} s, {scenes / seconds:.0f} scenes/s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
