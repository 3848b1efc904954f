"""`lamina list`: stacks by name."""

import typer

from lamina.cli import environment, options
from lamina.cli.output import print_json, print_text, table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("list")(list_)


def list_(json: options.Json = False) -> None:
    """List bases and named stacks: newest version, layers, digest."""
    from lamina.flows.inventory import inventory

    found = inventory(environment.open_store())
    if json:
        print_json(found)
        return
    rows = [[b["name"], "base", "", b["digest"][7:19]] for b in found["bases"]]
    rows += [
        [s["name"], s["version"], " > ".join(s["layers"]), s["digest"][7:19]]
        for s in found["stacks"]
    ]
    if rows:
        print_text(table(["name", "version", "layers", "digest"], rows))
    else:
        print_text("nothing here yet; start with: lamina base pull smollm2-135m")
