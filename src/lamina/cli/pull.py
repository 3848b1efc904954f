"""`lamina pull`: bring a stack from a registry or from the Hub."""

import sys
from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.display import Terminal
from lamina.cli.output import print_json, print_text, size


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("pull", no_args_is_help=True)(pull)


def pull(
    place: options.Place,
    name: Annotated[
        str | None,
        typer.Option("--as", metavar="NAME", help="Name for it (default: the place's last word)."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what is there, and stop.")
    ] = False,
    on: Annotated[
        str | None,
        typer.Option(
            "--on",
            metavar="STACK",
            help="hf: only, what an adapter that lamina did not make was trained over.",
        ),
    ] = None,
    accept_regression: options.AcceptRegression = None,
    author: options.Author = None,
    plain_http: options.PlainHttp = False,
    ca_file: options.CaFile = None,
    no_tls_verify: options.NoTlsVerify = False,
    json: options.Json = False,
) -> None:
    """Bring a stack here: shown first, checked on arrival, named through the gate.

    \b
    lamina pull oci://ghcr.io/me/support:v1 --dry-run
    lamina pull oci://ghcr.io/me/support:v1 --as support
    lamina pull oci://ghcr.io/me/support@sha256:…      # a stack or a single layer by digest
    lamina pull hf:me/support@main
    lamina pull hf:somebody/their-lora --on smollm2-135m --as theirs

    Author, lineage, licences and claimed results are shown before anything large moves. The base is
    taken from the store, from the same place, or from where it came from; its bytes have to be the
    base that the stack names. Interrupted, it goes on where it stopped. Who signed it is shown too;
    what your trust policy refuses (`lamina key policy`) does not land.
    """
    from lamina.flows.publish import Landing
    from lamina.flows.publish import pull as run

    hub = options.is_hub(place)
    registry_only = {
        "--plain-http": plain_http,
        "--ca-file": ca_file,
        "--no-tls-verify": no_tls_verify,
    }
    if hub:
        options.refuse_for_hub(place, registry_only)
    else:
        options.refuse_for_registry(place, {"--on": on})

    def confirm(text: str) -> bool:
        sys.stderr.write(text + "\n")
        if yes or not sys.stdin.isatty():
            return True
        return typer.confirm("pull it?", default=True, err=True)

    landing = Landing(
        name=name,
        dry_run=dry_run,
        override=accept_regression,
        author=author or environment.author(),
        trust=environment.trust(),
    )
    store, terminal = environment.open_store(), Terminal()
    if hub:
        from lamina.flows.hub import pull as pull_hub
        from lamina.share.hub import parse_hub_place

        at = parse_hub_place(place)
        pulled = pull_hub(store, at, terminal, landing, on=on, confirm=confirm)
    else:
        access = environment.access(
            plain_http=plain_http, ca_file=ca_file, no_tls_verify=no_tls_verify
        )
        pulled = run(store, place, access, terminal, landing, confirm=confirm)
    text = pulled.pop("text", "")
    if json:
        print_json(pulled)
    elif dry_run:
        print_text(text)
    else:
        digest = pulled["stack"] or pulled["base"]
        print_text(f"{pulled['name']} is @{digest[7:19]}; received {size(pulled['received'])}")
