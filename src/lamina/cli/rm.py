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
    from lamina.core.names import Name, parse_reference

    store = environment.open_store()
    for reference, text in [(parse_reference(text), text) for text in names]:
        if not isinstance(reference, Name):  # an unnamed layer that the gate held back
            store.remove_root(store.resolve(reference).digest)
        elif ":" in text:
            store.untag(reference)
        else:
            store.untag_all(reference.name)
    if json:
        print_json({"removed": names})
    else:
        print_text(f"removed {', '.join(names)}; `lamina gc` frees the space")
