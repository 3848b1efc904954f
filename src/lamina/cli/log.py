"""`lamina log`: how a name came to point where it points."""

from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.output import print_json, print_text


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("log")(log)


def log(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One name; all by default.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Show every move of a name, newest first: when, to which stack, what the gate said."""
    from lamina.flows.inventory import history, render_history

    moves = history(environment.open_store(), name)
    if json:
        print_json({"moves": moves})
    else:
        print_text(render_history(moves))
