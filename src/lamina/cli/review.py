"""`lamina review`: look at a proposal, sit its exams here, and say yes or no."""

import sys
from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.display import Terminal
from lamina.cli.output import print_json, print_text


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("review", no_args_is_help=True)(review)


def review(
    what: options.Proposal,
    onto: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The name that would move (default: as proposed)."),
    ] = None,
    plain_http: options.PlainHttp = False,
    ca_file: options.CaFile = None,
    no_tls_verify: options.NoTlsVerify = False,
    json: options.Json = False,
) -> None:
    """Say whether a proposed layer should be accepted, and why; exit 1 where it should not.

    \b
    lamina review agent.oci.tar
    lamina review oci://ghcr.io/ann/agent:proposal

    Everything happens beside your store: what is refused leaves nothing in it. Checked are the
    bytes against their digests, base and parents, signatures by your trust policy, licences, the
    weights (sizes against its recipe and other layers, copies of others' layers, interference with
    those beneath), every exam of the stack beneath and of the layer, sat here, through the gate,
    and its author's claims against what was measured. What passes is kept without a name until
    you `lamina accept` it, and the report goes on record. Nothing in a layer is run as a program.
    """
    from lamina.flows import review as flow
    from lamina.flows.offers import offered
    from lamina.flows.reviewed import render

    access = environment.access(plain_http=plain_http, ca_file=ca_file, no_tls_verify=no_tls_verify)
    with offered(what, access) as offer:
        report = flow.review(
            environment.open_store(),
            offer,
            Terminal(),
            onto=onto,
            reviewer=environment.author(),
            trust=environment.trust(),
        )
    if json:
        print_json(report.to_json())
    else:
        print_text(render(report))
    if not report.accepted:
        sys.exit(1)
