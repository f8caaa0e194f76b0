"""Options and progress reports of `refcli pretrain` and `refcli finetune`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refcli.cli.launching import LaunchOptions, launch_if_requested
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
    typer.Option("--dry-run", help="Print the resolved settings, sizes, memory and time; write nothing."),
]
RUN_KINDS = {"pretrain": "a pre-training run", "finetune": "a fine-tuning run"}
"""Command -> its runs, in messages."""
OWN_KEYS = {"objective": "pretrain", "stages": "finetune"}
"""Settings that only one command has, and that its run.yaml always states."""


@dataclass(frozen=True)
class TrainingOptions:
    """The options of a training command, as given."""

    command: str
    out: Path
    preset: str | None
    data: Path | None
    overrides: Sequence[str]
    init: str | None
    device: str | None
    resume: bool
    force: bool
    dry_run: bool
    launch: LaunchOptions


@dataclass(frozen=True)
class TrainingInputs:
    """The sources of a run's settings and data."""

    preset: str
    store: Path
    overrides: tuple[str, ...]


def resolve_inputs(options: TrainingOptions) -> TrainingInputs:
    """Find preset and store, by default those of a resumed run, and turn options into overrides.

    Raises:
        UsageError: no preset or store, nothing to resume, or the run of another command.
    """
    import json

    from refcli.errors import UsageError

    overrides = [*options.overrides]
    if options.init is not None:
        overrides.append(f"train.init_weights={json.dumps(options.init)}")
    if options.device is not None:
        overrides.append(f"train.device={json.dumps(options.device)}")
    preset, data = options.preset, options.data
    if options.resume:
        file = options.out / "run.yaml"
        if not file.is_file():
            raise UsageError("there is no run to resume", where=str(file), hint="leave out --resume")
        _check_command(options.command, file)
        preset = preset or str(file)
        data = data or _store_of(options.out)
    if preset is None:
        raise UsageError("no preset is given", where="--preset", hint="see `refcli presets list`")
    if data is None:
        raise UsageError("no store is given", where="--data", hint="write one with `refcli prepare-data`")
    return TrainingInputs(preset, data, tuple(overrides))


def _check_command(command: str, run_yaml: Path) -> None:
    """Check that a run was started by this command.

    Raises:
        UsageError: another command started it.
        ConfigError: its settings cannot be read.
    """
    from refcli.config.load import read_yaml
    from refcli.errors import UsageError

    values = read_yaml(run_yaml)
    started_by = next((owner for key, owner in OWN_KEYS.items() if key in values), command)
    if started_by != command:
        raise UsageError(
            f"this directory holds {RUN_KINDS[started_by]}, which `refcli {command}` cannot resume",
            where=str(run_yaml),
            hint=f"refcli {started_by} --resume --out {run_yaml.parent}",
        )


def _store_of(run: Path) -> Path:
    from refcli.engine.checkpointing.run_dir import RunDir
    from refcli.errors import UsageError

    store = RunDir(run).facts().get("store")
    if not isinstance(store, str) or not store:
        raise UsageError(
            "the store of the run is not recorded",
            where=str(run / "env.json"),
            hint="name it: --resume --data STORE",
        )
    return Path(store)


def launch_training(
    options: TrainingOptions, settings: FinetuneSettings | PretrainSettings, inputs: TrainingInputs
) -> None:
    """Launch the processes that the options ask for; return if this process should do the training.

    Raises:
        typer.Exit: the processes have ended (with their exit code), or the SLURM script is printed.
        RefcliError: the options contradict each other or do not fit this machine.
    """

    def identify() -> str:
        from refcli.engine.checkpointing.resume import run_identity

        return run_identity(options.command, settings, store_path=inputs.store, out=options.out)

    launch_if_requested(options.launch, out=options.out, device=settings.train.device, identify=identify)


def run_training(
    options: TrainingOptions, settings: FinetuneSettings | PretrainSettings, inputs: TrainingInputs, **extra: object
) -> None:
    """Launch the processes, then train, or describe the run with --dry-run.

    Args:
        options: the options of the command.
        settings: the resolved settings.
        inputs: the sources of settings and data.
        extra: further arguments of the command's recipe.

    Raises:
        typer.Exit: see `launch_training`.
        RefcliError: see the recipe.
    """
    from importlib import import_module

    from refcli.cli.launching import report_from_one_rank
    from refcli.cli.output import log, write_line
    from refcli.config.explain import explain

    launch_training(options, settings, inputs)
    recipe = import_module(f"refcli.recipes.{options.command}")
    if options.dry_run:
        write_line(explain(settings).rstrip("\n"))
        for line in recipe.preview(settings, store_path=inputs.store):
            log(line)
        return
    train = getattr(recipe, options.command)
    with report_from_one_rank(), ConsoleReporter() as reporter:
        weights = train(
            settings,
            store_path=inputs.store,
            out=options.out,
            resume=options.resume,
            force=options.force,
            reporter=reporter,
            **extra,
        )
    log(f"weights: {weights}")
    write_line(str(options.out))


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
        """Print a message."""
        from refcli.cli.output import log

        log(text)

    def started(self, *, step: int, total: int) -> None:
        """Show a progress bar on a terminal."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from refcli.cli.output import console_err

        self.__exit__()  # the bar of the previous stage
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
        """Print the metrics."""
        from refcli.engine.reporting.reporters import metrics_text

        self.noted(metrics_text(metrics))

    def validated(self, metrics: Mapping[str, float], *, is_best: bool) -> None:
        """Print the metrics, and whether they are the best so far."""
        from refcli.engine.reporting.reporters import metrics_text

        self.noted("validation: " + metrics_text(metrics) + (" (best so far)" if is_best else ""))

    def saved(self, step: int) -> None:
        """Print nothing: log.txt records checkpoints."""
