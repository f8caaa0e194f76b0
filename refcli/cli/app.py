"""The command-line application: commands, global options and exit codes."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated, Any, NoReturn

import typer
import typer.main
from typer.core import TyperGroup

import refcli
from refcli.cli import presets, weights
from refcli.cli.errors import DEBUG_VARIABLE, report_error
from refcli.cli.output import exit_on_closed_pipe, flush_stdout, log, open_streams, write_line
from refcli.errors import ExitCode, RefcliError, UsageError
from refcli.tables import did_you_mean, lookup

COMMANDS = {
    "prepare-data": "refcli.cli.prepare_data:command",
    "inspect-data": "refcli.cli.inspect_data:command",
    "audit": "refcli.cli.audit:command",
    "pretrain": "refcli.cli.pretrain:command",
    "finetune": "refcli.cli.finetune:command",
    "evaluate": "refcli.cli.evaluate:command",
    "predict": "refcli.cli.predict:command",
    "convert-answers": "refcli.cli.convert_answers:command",
    "demo": "refcli.cli.demo:command",
}
"""Command -> function, in the order of a project's steps. At its top, a module imports nothing heavier than typer."""
CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"]}


class CommandTable(TyperGroup):
    """Imports a command's module on first use, so that each command loads only its own imports.

    Contexts and commands are click's; typer requires click or contains a copy, so their classes are not named here.
    """

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401
        """Names in the order of the table, then the sub-applications."""
        return [*COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401
        """The command of that name, or None."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        single = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=CONTEXT_SETTINGS)
        single.command(cmd_name)(lookup(COMMANDS, cmd_name, what="command"))
        return typer.main.get_command(single)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401
        """Resolve a command as click does, but suggest the nearest name for an unknown one.

        Raises:
            UsageError: there is no such command.
        """
        known = self.list_commands(ctx)
        if args[0] not in known and not ctx.resilient_parsing:
            raise UsageError(f"there is no command {args[0]!r}", hint=did_you_mean(args[0], known))
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="refcli",
    cls=CommandTable,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT_SETTINGS,
)
app.add_typer(presets.app, name="presets")
app.add_typer(weights.app, name="weights")


def run() -> NoReturn:
    """Run the command line on `sys.argv` and exit with a documented code (see `refcli.errors.ExitCode`)."""
    try:
        open_streams()
        code = app(prog_name="refcli", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = ExitCode.INTERRUPTED
    except BrokenPipeError:
        exit_on_closed_pipe()
    except Exception as error:
        code = _show_usage_error(error) or report_error(error)
    flush_stdout()
    sys.exit(code if isinstance(code, int) else ExitCode.OK)


def _show_usage_error(error: Exception) -> int | None:
    """Log click's message about an invalid command line and return the exit code; None for any other error.

    typer requires click or contains a copy, depending on its version, hence no `isinstance` with click's class.
    """
    show = getattr(error, "show", None)
    if show is None or isinstance(error, RefcliError):
        return None
    shown = io.StringIO()
    show(file=shown)
    log(shown.getvalue().rstrip())
    return int(getattr(error, "exit_code", ExitCode.USAGE))


def _print_version(wanted: bool) -> None:
    if wanted:
        write_line(f"refcli {refcli.__version__}")
        raise typer.Exit


def _switch_on_debug(wanted: bool) -> None:
    if wanted:
        os.environ[DEBUG_VARIABLE] = "1"


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help=f"Show tracebacks (also {DEBUG_VARIABLE}=1).", callback=_switch_on_debug),
    ] = False,
) -> None:
    """Visual grounding: describe something in an image, get its box and its mask."""
