"""`lamina propose`: offer a layer to whoever keeps the stack beneath it."""

from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.display import Terminal
from lamina.cli.output import print_json, print_text


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("propose", no_args_is_help=True)(propose)


def propose(
    stack: options.Stack,
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE|PLACE]",
            help="A file to write (default: NAME.oci.tar), or a tag: oci://host/repository:tag.",
        ),
    ] = None,
    onto: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The name of theirs that should move to it."),
    ] = None,
    note: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What it is for, in your words.")
    ] = None,
    whole: Annotated[
        bool,
        typer.Option("--whole", help="Put the layers beneath in, for who does not have them."),
    ] = False,
    author: options.Author = None,
    despite: options.Despite = None,
    plain_http: options.PlainHttp = False,
    ca_file: options.CaFile = None,
    no_tls_verify: options.NoTlsVerify = False,
    json: options.Json = False,
) -> None:
    """Pack a stack's top layer with all that is on record about it, as one file to review.

    \b
    lamina propose agent --onto agent --note "learned the new tools"
    lamina propose agent for-them.oci.tar --whole
    lamina propose agent oci://ghcr.io/ann/agent:proposal --onto agent

    The file is an OCI archive (skopeo reads it as oci-archive:FILE); the same proposal has the same
    bytes. It holds the layer, its exams' questions unless they are withheld, its rehearsal rows,
    cost, certificates, signatures and results. They review and accept it with:

    \b
    lamina review agent.oci.tar
    lamina accept agent.oci.tar
    """
    from lamina.flows import propose as flow

    made = flow.propose(
        environment.open_store(),
        stack,
        target,
        Terminal(),
        onto=onto,
        note=note,
        author=author or environment.author(),
        whole=whole,
        despite=despite,
        access=environment.access(
            plain_http=plain_http, ca_file=ca_file, no_tls_verify=no_tls_verify
        ),
    )
    if json:
        print_json(made)
    else:
        print_text(flow.render(made))
