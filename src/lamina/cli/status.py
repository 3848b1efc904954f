"""`lamina status`: which stacks stand on old versions of layers."""

from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.output import print_json, print_text


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("status")(status)


def status(
    stack: Annotated[
        str | None, typer.Argument(metavar="[STACK]", help="One stack; all by default.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Show which layers have a new version, and which stacks went stale by that.

    \b
    lamina status
    lamina status agent

    A stack is stale when a layer in it has a newer version under a name, or stands on other layers
    than it was trained on. For each stale stack it says what brings it up to date.
    """
    from lamina.flows.lineage import render_status, status_of

    found = status_of(environment.open_store(), stack)
    if json:
        stacks = [each.to_json() for each in found]
        print_json({"current": all(each.fresh for each in found), "stacks": stacks})
    elif stack is not None:
        print_text("\n\n".join(each.render() for each in found))
    else:
        print_text(render_status(found))
