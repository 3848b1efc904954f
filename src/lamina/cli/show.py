"""`lamina show`: everything that is known about a stack, layer or base."""

import sys
from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.output import print_json, print_text
from lamina.core.plain import escaped_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("show", no_args_is_help=True)(show)


def show(
    what: Annotated[str, typer.Argument(metavar="STACK|LAYER|BASE", help="A name or @digest.")],
    rehearsal: Annotated[
        bool,
        typer.Option(
            "--rehearsal", help="The rows that travel with the layer, as JSONL, and nothing else."
        ),
    ] = False,
    json: options.Json = False,
) -> None:
    """Show a stack's base and layers: recipe, data, exams, results, cost, who made it."""
    if rehearsal:
        from lamina.flows.inventory import travelling_rows

        sys.stdout.write(escaped_json(travelling_rows(environment.open_store(), what)))
        return
    from lamina.flows.inventory import describe, render

    found = describe(environment.open_store(), what, environment.trust_to_show())
    if json:
        print_json(found)
    else:
        print_text(render(found))
