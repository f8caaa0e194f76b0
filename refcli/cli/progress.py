"""Progress bars on stderr, only on a terminal."""

from __future__ import annotations

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from typing_extensions import Self

from refcli.cli.output import console_err, printable


class ProgressBars:
    """One bar per name, shown from its first progress on."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        self._bars = Progress(
            *columns, TimeRemainingColumn(), console=console_err, transient=True, disable=not console_err.is_terminal
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def show(self, name: str, done: int, total: int | None) -> None:
        """Move the bar of a name; `total` None is unknown."""
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(printable(name), total=total)
        self._bars.update(self._tasks[name], completed=done)
