"""`refcli finetune`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refcli.cli.options import Data, Device, Preset, Set

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


def command(
    out: Annotated[Path, typer.Option("--out", "-o", help="The run directory to write.", metavar="RUN")],
    preset: Preset = None,
    data: Data = None,
    set_: Set = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out from its last checkpoint.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Remove the run in --out first.")] = False,
    init: Annotated[
        str | None,
        typer.Option("--init", help="Start from these weights: `builtin` or a directory such as OTHER_RUN/weights."),
    ] = None,
    device: Device = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved settings and what would be trained; write nothing.")
    ] = False,
) -> None:
    """Train the tower and a head on a store.

    Needs --preset and --data, except with --resume, where the run's own are the default.
    A curriculum is a chain of runs: give each the weights of the one before with --init.
    """
    import json

    from refcli.cli.output import say, write_line
    from refcli.config.explain import explain
    from refcli.config.load import load_finetune
    from refcli.errors import UsageError

    overrides = [*(set_ or [])]
    if init is not None:
        overrides.append(f"train.init_weights={json.dumps(init)}")
    if device is not None:
        overrides.append(f"train.device={json.dumps(device)}")
    if resume:
        if not (out / "run.yaml").is_file():
            raise UsageError("there is no run to resume", where=str(out / "run.yaml"), hint="leave out --resume")
        preset = preset or str(out / "run.yaml")
        data = data or Path(json.loads((out / "env.json").read_text(encoding="utf-8"))["store"])
    if preset is None:
        raise UsageError("no preset is given", where="--preset", hint="see `refcli presets list`")
    if data is None:
        raise UsageError("no store is given", where="--data", hint="write one with `refcli prepare-data`")
    settings = load_finetune(preset, overrides)

    from refcli.recipes.finetune import finetune, preview

    if dry_run:
        write_line(explain(settings).rstrip("\n"))
        for line in preview(settings, store_path=data):
            say(line)
        return
    with TrainingTalk() as talk:
        weights = finetune(settings, store_path=data, out=out, resume=resume, force=force, reporter=talk)
    say(f"weights: {weights}")
    write_line(str(out))


class TrainingTalk:
    """Reports training on stderr: a progress bar on a terminal, one line per measurement everywhere."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> TrainingTalk:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def noted(self, text: str) -> None:
        """Print it."""
        from refcli.cli.output import say

        say(text)

    def started(self, *, step: int, total: int) -> None:
        """Show a bar where there is a terminal to show it on."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from refcli.cli.output import console_err

        if step:
            self.noted(f"continuing after step {step}")
        if not console_err.is_terminal:
            return
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console_err, transient=True)
        self._task = self._progress.add_task("training", total=total, completed=step)
        self._progress.start()

    def stepped(self, step: int) -> None:
        """Move the bar."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=step)

    def measured(self, metrics: Mapping[str, float]) -> None:
        """Print the line."""
        from refcli.engine.reporting import metrics_text

        self.noted(metrics_text(metrics))

    def validated(self, metrics: Mapping[str, float], *, is_best: bool) -> None:
        """Print the line, and whether it is the best."""
        from refcli.engine.reporting import metrics_text

        self.noted("validation: " + metrics_text(metrics) + (" (best so far)" if is_best else ""))

    def saved(self, step: int) -> None:
        """A checkpoint is not worth a line; log.txt has it."""
