"""`lamina sign`: vouch for a stack, layer or base."""

from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.output import print_json, print_text
from lamina.cli.passphrase import File, asker


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("sign", no_args_is_help=True)(sign)


def sign(
    what: Annotated[str, typer.Argument(metavar="STACK|LAYER|BASE", help="A name or @digest.")],
    key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Name or id; needed where you have several."),
    ] = None,
    statement: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What you say of it, in one line.")
    ] = None,
    passphrase_file: File = None,
    json: options.Json = False,
) -> None:
    """Sign a stack with its layers, their order and weights; the signature travels with it.

    \b
    lamina key new --name anna@example.org
    lamina sign support --statement "read by legal on 3 May"
    lamina verify support
    """
    from lamina.core.digest import short
    from lamina.flows.trust import sign_object

    done = sign_object(
        environment.open_store(),
        environment.trust(),
        what,
        asker(passphrase_file),
        key=key,
        statement=statement,
    )
    if json:
        print_json(done)
    else:
        print_text(f"{done['name']} ({short(done['key'])}) signed @{short(done['object'])}")
