"""`lamina show`: everything that is known about a stack, layer or base."""

from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.output import print_json, print_text


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("show", no_args_is_help=True)(show)


def show(
    what: Annotated[str, typer.Argument(metavar="STACK|LAYER|BASE", help="A name or @digest.")],
    json: options.Json = False,
) -> None:
    """Show a stack's base and layers: recipe, data, exams, results, cost, who made it."""
    from lamina.flows.inventory import describe, render

    found = describe(environment.open_store(), what)
    if json:
        print_json(found)
    else:
        print_text(render(found))
