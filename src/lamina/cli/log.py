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
    graph: Annotated[
        bool,
        typer.Option(
            "--graph", help="Draw what each version stands on, replaced and was made from."
        ),
    ] = False,
    json: options.Json = False,
) -> None:
    """Show every move of a name, newest first: when, to which stack, what the gate said.

    \b
    lamina log agent
    lamina log --graph

    With --graph each version also shows its layers and its results, and whether it is stale.
    """
    if graph:
        from lamina.flows.graph import graph as draw

        drawn = draw(environment.open_store(), name)
        if json:
            print_json(drawn.to_json())
        else:
            print_text(drawn.render())
        return
    from lamina.flows.inventory import history, render_history

    moves = history(environment.open_store(), name, environment.trust_to_show())
    if json:
        print_json({"moves": moves})
    else:
        print_text(render_history(moves))
