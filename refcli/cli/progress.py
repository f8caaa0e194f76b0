"""Progress bars, only on a terminal."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from typing_extensions import Self

from refcli.cli.output import console_err, printable


class ProgressBars:
    """One bar per name, shown from its first progress on."""

    def __init__(self, console: Console = console_err) -> None:
        name = TextColumn("{task.description}", markup=False)
        columns = (name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
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

    def for_group(self, group: str) -> Callable[[str, int, int], None]:
        """`show` for the names of a group."""
        return lambda name, done, total: self.show(f"{group} {name}", done, total)
