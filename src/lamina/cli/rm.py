"""`lamina rm`: remove names."""

from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.output import print_json, print_text


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("rm", no_args_is_help=True)(rm)


def rm(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME…", help="support: all its versions; support:v2: that one; @digest."
        ),
    ],
    json: options.Json = False,
) -> None:
    """Remove names. What nothing refers to any more stays until `lamina gc`."""
    from lamina.flows.remove import remove

    remove(environment.open_store(), names)
    if json:
        print_json({"removed": names})
    else:
        print_text(f"removed {', '.join(names)}; `lamina gc` frees the space")
