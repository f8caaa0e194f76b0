"""What `refcli pretrain` and `refcli finetune` share: their options, where settings come from, and what is said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refcli.cli.options import WEIGHTS_METAVAR, WEIGHTS_NAMES

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from refcli.config.pretraining import PretrainSettings
    from refcli.config.schema import FinetuneSettings

Out = Annotated[Path, typer.Option("--out", "-o", help="The run directory to write.", metavar="RUN")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out from its last checkpoint.")]
Force = Annotated[bool, typer.Option("--force", help="Remove the run in --out first; other files stay.")]
Init = Annotated[
    str | None,
    typer.Option("--init", help=f"Start from these weights: {WEIGHTS_NAMES}.", metavar=WEIGHTS_METAVAR),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print the resolved settings and what would be trained; write nothing."),
]


@dataclass(frozen=True)
class Request:
    """What a training command was asked for."""

    preset: str
    store: Path
    overrides: tuple[str, ...]


def resolve_request(
    *,
    out: Path,
    preset: str | None,
    data: Path | None,
    set_: list[str] | None,
    init: str | None,
    device: str | None,
    resume: bool,
) -> Request:
    """Complete what was given: options become overrides, and a resumed run brings its own preset and store.

    Raises:
        UsageError: no preset or store, or nothing to resume.
    """
    import json

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
        data = data or _store_of(out)
    if preset is None:
        raise UsageError("no preset is given", where="--preset", hint="see `refcli presets list`")
    if data is None:
        raise UsageError("no store is given", where="--data", hint="write one with `refcli prepare-data`")
    return Request(preset, data, tuple(overrides))


def _store_of(run: Path) -> Path:
    from refcli.engine.checkpointing.run_dir import RunDir
    from refcli.errors import UsageError

    store = RunDir(run).facts().get("store")
    if not isinstance(store, str) or not store:
        raise UsageError(
            "the store that the run was trained on is not recorded",
            where=str(run / "env.json"),
            hint="name it: --resume --data STORE",
        )
    return Path(store)


def identify_run(command: str, settings: FinetuneSettings | PretrainSettings, request: Request, out: Path) -> str:
    """What the machines that train one run have in common, and no other run has.

    Raises:
        DataError: no such store.
    """
    from refcli.engine.checkpointing.resume import run_identity

    return run_identity(command, settings, store_path=request.store, out=out)


class ConsoleReporter:
    """Reports training on stderr: a progress bar on a terminal, one line per measurement everywhere."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> ConsoleReporter:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def noted(self, text: str) -> None:
        """Print it."""
        from refcli.cli.output import log

        log(text)

    def started(self, *, step: int, total: int) -> None:
        """Show a bar where there is a terminal to show it on."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from refcli.cli.output import console_err

        self.__exit__()  # the bar of the stage before
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
        from refcli.engine.reporting.reporters import metrics_text

        self.noted(metrics_text(metrics))

    def validated(self, metrics: Mapping[str, float], *, is_best: bool) -> None:
        """Print the line, and whether it is the best."""
        from refcli.engine.reporting.reporters import metrics_text

        self.noted("validation: " + metrics_text(metrics) + (" (best so far)" if is_best else ""))

    def saved(self, step: int) -> None:
        """A checkpoint is not worth a line; log.txt has it."""
