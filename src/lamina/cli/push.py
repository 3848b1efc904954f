"""`lamina push`: send a stack to a registry or to the Hub."""

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
    private: Annotated[
        bool, typer.Option("--private", help="hf: only, a repository that is made is private.")
    ] = False,
    message: Annotated[
        str | None,
        typer.Option("--message", metavar="TEXT", help="hf: only, of the commit."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="hf: only, say what would be sent, and stop.")
    ] = False,
    despite: options.Despite = None,
    json: options.Json = False,
) -> None:
    """Send a stack with its layers, exams and evidence to an OCI registry or to the Hub.

    \b
    lamina push support oci://ghcr.io/me/support:v1
    lamina push support oci://127.0.0.1:5000/me/support --with-base
    lamina push support hf:me/support --private

    Only what the other side lacks is sent; interrupted, it goes on where it stopped. A tag moves
    last; on the Hub all of it is one commit, with an adapter that PEFT reads and a model card. Log
    in with `docker login HOST` (or skopeo's, or oras') or `hf auth login`: lamina keeps no
    passwords.
    """
    if options.is_hub(place):
        options.refuse_for_hub(
            place, {"--force": force, "--plain-http": plain_http, "--ca-file": ca_file,
                    "--no-tls-verify": no_tls_verify},
        )  # fmt: skip
        _to_hub(stack, place, with_base, private, message, dry_run, despite, json)
        return
    options.refuse_for_registry(
        place,
        {"--private": private, "--message": message, "--dry-run": dry_run},
    )
    from lamina.flows.publish import push as run

    access = environment.access(plain_http=plain_http, ca_file=ca_file, no_tls_verify=no_tls_verify)
    pushed = run(
        environment.open_store(),
        stack,
        place,
        access,
        Terminal(),
        with_base=with_base,
        force=force,
        despite=despite,
    )
    if json:
        print_json(pushed)
    else:
        print_text(f"{pushed['pushed']} is @{pushed['digest'][7:19]}; sent {size(pushed['sent'])}")


def _to_hub(
    stack: str,
    place: str,
    with_base: bool,
    private: bool,
    message: str | None,
    dry_run: bool,
    despite: str | None,
    json: bool,
) -> None:
    from lamina.flows.hub import push as run
    from lamina.share.hub import parse_hub_place

    pushed = run(
        environment.open_store(),
        stack,
        parse_hub_place(place),
        Terminal(),
        with_base=with_base,
        private=private,
        message=message,
        dry_run=dry_run,
        despite=despite,
    )
    if json:
        print_json(pushed)
        return
    what = f"{pushed['files']} files, {size(pushed['bytes'])}"
    if dry_run:
        print_text(f"{place}: would send {what}; {pushed['unchanged']} are there already")
    elif pushed["changed"]:
        print_text(f"{place} is @{pushed['stack'][7:19]} at {pushed['commit'][:12]}; sent {what}")
    else:
        print_text(f"{place} is @{pushed['stack'][7:19]} already, at {pushed['commit'][:12]}")
