"""`lamina push`: send a stack to a registry."""

from pathlib import Path
from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.display import Terminal
from lamina.cli.output import print_json, print_text, size


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("push", no_args_is_help=True)(push)


def push(
    stack: options.Stack,
    place: options.Place,
    with_base: Annotated[
        bool, typer.Option("--with-base", help="Send the base too; otherwise it is only named.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Move the tag although somebody else has pushed to it.")
    ] = False,
    plain_http: options.PlainHttp = False,
    ca_file: options.CaFile = None,
    no_tls_verify: options.NoTlsVerify = False,
    json: options.Json = False,
) -> None:
    """Send a stack with its layers, exams and evidence to an OCI registry.

    \b
    lamina push support oci://ghcr.io/me/support:v1
    lamina push support oci://127.0.0.1:5000/me/support --with-base

    Only what the registry lacks is sent; interrupted, it goes on where it stopped. The tag moves
    last. Log in with `docker login HOST` (or skopeo's, or oras'): lamina keeps no passwords.
    """
    from lamina.flows.publish import push as run

    access = environment.access(
        plain_http=plain_http, ca_file=Path(ca_file) if ca_file else None, verify=not no_tls_verify
    )
    pushed = run(
        environment.open_store(),
        stack,
        place,
        access,
        Terminal(),
        with_base=with_base,
        force=force,
    )
    if json:
        print_json(pushed)
    else:
        print_text(f"{pushed['pushed']} is @{pushed['digest'][7:19]}; sent {size(pushed['sent'])}")
