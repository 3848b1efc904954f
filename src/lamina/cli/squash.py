"""`lamina squash`: all layers of a stack as one."""

from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.display import Terminal
from lamina.cli.output import print_json, print_text


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("squash", no_args_is_help=True)(squash)


def squash(
    stack: options.Stack,
    rank: Annotated[
        int | None, typer.Option(metavar="R", help="Keep at most this rank a linear.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="E", help="Keep the rank that leaves out at most this share of each update."
        ),
    ] = None,
    passes: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Passes over the rehearsal rows in which what --rank leaves learns to say what "
            "the stack says; 0: none (default: a few).",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--as", metavar="NAME", help="Name that moves (default: the stack's own)."),
    ] = None,
    author: options.Author = None,
    accept_regression: options.AcceptRegression = None,
    despite: options.Despite = None,
    json: options.Json = False,
) -> None:
    """Make one layer over the bare base of all layers in a stack, of the smallest rank.

    \b
    lamina squash agent                              # exact
    lamina squash agent --rank 8 --as agent-small    # train wide, ship narrow
    lamina squash agent --tolerance 0.1

    The layer carries every exam of the stack, and the gate compares it with the original. The
    certificate (`lamina show`) says what was left out and what that changed. The original stays.
    """
    from lamina.flows import squash as flow

    squashed = flow.squash(
        environment.open_store(),
        stack,
        rank=rank,
        tolerance=tolerance,
        passes=passes,
        name=name,
        reporter=Terminal(),
        override=accept_regression,
        despite=despite,
        author=author or environment.author(),
    )
    if json:
        print_json(squashed)
    else:
        print_text(flow.render(squashed))
