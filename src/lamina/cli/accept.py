"""`lamina accept`: let a name move to a reviewed proposal."""

from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.display import Terminal
from lamina.cli.output import print_json, print_text


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("accept", no_args_is_help=True)(accept)


def accept(
    what: options.Proposal,
    name: Annotated[
        str | None,
        typer.Option("--as", metavar="NAME", help="Name that moves (default: as proposed)."),
    ] = None,
    accept_regression: options.AcceptRegression = None,
    despite: Annotated[
        str | None,
        typer.Option(
            "--despite",
            metavar="WHY",
            help="Accept it although its review refuses it for other reasons; recorded.",
        ),
    ] = None,
    author: options.Author = None,
    plain_http: options.PlainHttp = False,
    ca_file: options.CaFile = None,
    no_tls_verify: options.NoTlsVerify = False,
    json: options.Json = False,
) -> None:
    """Review a proposal, unless this machine did, and move the name to it through the gate.

    \b
    lamina accept agent.oci.tar
    lamina accept agent.oci.tar --as agent-with-tools

    Who accepted it, when, and the gate's verdict are on record: lamina log NAME.
    """
    from lamina.flows import accept as flow
    from lamina.flows.offers import offered

    access = environment.access(plain_http=plain_http, ca_file=ca_file, no_tls_verify=no_tls_verify)
    with offered(what, access) as offer:
        accepted = flow.accept(
            environment.open_store(),
            offer,
            Terminal(),
            name=name,
            override=accept_regression,
            despite=despite,
            author=author or environment.author(),
            trust=environment.trust(),
        )
    if json:
        print_json(accepted)
    else:
        print_text(flow.render(accepted))
