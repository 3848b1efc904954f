"""The `lamina` command: assembles the commands and turns errors into text and exit codes.

Exit codes: 0 done, 1 a check or gate said no, 2 bad usage or input, 70 a bug, 130 interrupted.
"""

import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from lamina.cli import (
    accept,
    access,
    advise,
    arena,
    base,
    bisect,
    chat,
    conflicts,
    cost,
    diff,
    draw,
    exam,
    export,
    farm,
    gc,
    import_,
    key,
    list_,
    log,
    merge,
    plan,
    propose,
    pull,
    push,
    quickstart,
    rebase,
    refresh,
    reproduce,
    review,
    rm,
    runs,
    serve,
    show,
    sign,
    squash,
    status,
    sweep,
    tag,
    train,
    update,
    verify,
    votes,
)
from lamina.core.errors import LaminaError, UsageError
from lamina.core.plain import shown
from lamina.core.version import __version__

EXIT_BAD_INPUT, EXIT_BUG, EXIT_INTERRUPTED = 2, 70, 130

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
    advise,
    plan,
    train,
    farm,
    sweep,
    update,
    refresh,
    rebase,
    chat,
    draw,
    serve,
    exam,
    diff,
    arena,
    bisect,
    squash,
    merge,
    conflicts,
    list_,
    show,
    log,
    status,
    cost,
    tag,
    push,
    pull,
    rm,
    runs,
    reproduce,
    import_,
    export,
    propose,
    review,
    accept,
    gc,
    verify,
    sign,
    votes,
):
    command.register(app)
app.add_typer(base.app, name="base")
app.add_typer(access.app, name="access")
app.add_typer(key.app, name="key")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the console script; `arguments` are sys.argv's by default."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _check_text(given)
        app(given, prog_name="lamina")
        sys.exit(0)
    except LaminaError as error:
        _say(error.render())
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except OSError as error:
        _say(_system_error(error))
        sys.exit(EXIT_BAD_INPUT)
    except Exception:
        import traceback

        traceback.print_exc()
        _say(f"this is a bug in lamina {__version__}; please report it with the lines above")
        sys.exit(EXIT_BUG)


def _say(text: str) -> None:
    sys.stderr.write(f"lamina: {shown(text)}\n")


def _check_text(arguments: Sequence[str]) -> None:
    """Refuse bytes that are no UTF-8: they could be neither tokenised nor printed."""
    faults = []
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            faults.append(ascii(argument))
    if faults:
        raise UsageError("arguments must be UTF-8", faults=faults)


def _system_error(error: OSError) -> str:
    """What the system refused, without a traceback: a file, a permission, a full disk."""
    if error.errno is None or not error.strerror:
        return str(error) or type(error).__name__
    where = f": {error.filename}" if error.filename is not None else ""
    return f"{error.strerror}{where}"
