"""The `lamina` command: assembles the commands and turns errors into text and exit codes.

Exit codes: 0 done, 1 a check or gate said no, 2 bad usage or input, 130 interrupted.
"""

import os
import sys

import typer

from lamina.cli import (
    base,
    chat,
    diff,
    exam,
    export,
    gc,
    import_,
    list_,
    log,
    quickstart,
    reproduce,
    rm,
    runs,
    show,
    tag,
    train,
    verify,
)
from lamina.core.errors import LaminaError
from lamina.core.version import __version__

app = typer.Typer(
    name="lamina",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Small open models, improved in layers. Train a low-rank layer in minutes, stack it on "
    "layers that others made, examine the stack, and keep what got better.\n\n"
    "New here? `lamina quickstart` shows everything on a small model.",
)


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and stop."),
) -> None:
    if version:
        typer.echo(f"lamina {__version__}")
        raise typer.Exit


for command in (
    quickstart,
    train,
    chat,
    exam,
    diff,
    list_,
    show,
    log,
    tag,
    rm,
    runs,
    reproduce,
    export,
    gc,
    verify,
):
    command.register(app)
app.add_typer(base.app, name="base")
app.add_typer(import_.app, name="import")


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except LaminaError as error:
        sys.stderr.write(f"lamina: {error.render()}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("lamina: interrupted\n")
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
