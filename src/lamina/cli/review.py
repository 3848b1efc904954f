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
    json: options.Json = False,
) -> None:
    """Say whether a proposed layer should be accepted, and why; exit 1 where it should not.

    \b
    lamina review agent.oci.tar

    Everything happens beside your store: what is refused leaves nothing in it. Checked are the
    bytes against their digests, base and parents, licences, the weights (sizes against its recipe
    and other layers, copies of others' layers, interference with those beneath), every exam of the
    stack beneath and of the layer, sat here, through the gate, and its author's claims against
    what was measured. What passes is kept without a name until you `lamina accept` it, and the
    report goes on record. Nothing in a layer is ever run as a program.
    """
    from lamina.flows import review as flow

    report = flow.review(
        environment.open_store(),
        flow.offered(what),
        Terminal(),
        onto=onto,
        reviewer=environment.author(),
    )
    if json:
        print_json(report.to_json())
    else:
        print_text(flow.render(report))
    if not report.accepted:
        sys.exit(1)
