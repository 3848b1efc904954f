"""`lamina bisect`: which layer of a stack made an exam worse."""

from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.display import Terminal
from lamina.cli.output import print_json, print_text


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("bisect", no_args_is_help=True)(bisect)


def bisect(
    stack: options.Stack,
    exam: Annotated[
        list[str] | None,
        typer.Option(
            "--exam",
            metavar="NAME|FILE",
            help="An exam that the stack carries, or questions of your own; repeat.",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Find the layer that made an exam worse, and the questions that it cost.

    \b
    lamina bisect agent
    lamina bisect agent --exam assistant/loss
    lamina bisect agent --exam my_questions.jsonl

    Examines the stack layer by layer from the base up, and without each layer in turn. Results are
    recorded, so asking again is quick.
    """
    from lamina.flows.bisect import bisect as flow

    found = flow(environment.open_store(), stack, Terminal(), wanted=exam or [])
    if json:
        print_json(found.to_json())
    else:
        print_text(found.render())
