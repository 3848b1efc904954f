"""`lamina tag`: give a stack a name, through the gate."""

from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.display import Terminal
from lamina.cli.output import print_json, print_text


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("tag", no_args_is_help=True)(tag)


def tag(
    stack: options.Stack,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name to give it.")],
    accept_regression: options.AcceptRegression = None,
    author: options.Author = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Point a name at a stack, if no exam that it inherits got significantly worse.

    \b
    lamina tag agent:v1 agent          # go back to the first version, as a new version
    lamina tag @3fa2b1c0d4e5 agent --accept-regression "tools matter more than chat"
    """
    from lamina.flows.tag import tag as run

    tagged = run(
        environment.open_store(),
        stack,
        name,
        Terminal(),
        override=accept_regression,
        author=author or environment.author(),
        force=force,
    )
    if json:
        print_json(tagged)
    else:
        print_text(f"{tagged['name']} is @{tagged['stack'][7:19]}")
