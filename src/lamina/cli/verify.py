"""`lamina verify`: check every byte of the store, or one object with its signatures."""

from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.output import print_json, print_text, size
from lamina.core.errors import CheckError, CorruptBlobError, MissingBlobError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("verify")(verify)


def verify(
    what: Annotated[
        str | None,
        typer.Argument(metavar="[STACK|LAYER|BASE]", help="One object; the whole store without."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Read everything in the store and compare it with its digests; exit 1 on any fault.

    \b
    lamina verify
    lamina verify support

    With an object: its bytes, who signed it and its layers, and what the trust policy says of it
    (`lamina key policy`); exit 1 where bytes are damaged or the policy refuses it. No network.
    """
    if what is not None:
        _one(what, json)
        return
    report = environment.open_store().verify()
    if json:
        print_json(report.model_dump(mode="json"))
    else:
        for fault in report.faults:
            print_text(f"fault: {fault}")
        state = f"{len(report.faults)} faults" if report.faults else "all sound"
        print_text(f"{report.blobs} objects, {size(report.bytes)}: {state}")
    if report.faults:
        raise typer.Exit(1)


def _one(what: str, json: bool) -> None:
    from lamina.flows.trust import check_stored, render_check

    try:
        found = check_stored(environment.open_store(), environment.trust(), what)
    except (CorruptBlobError, MissingBlobError) as error:  # so badly that nothing more can be said
        raise CheckError(error.message, faults=error.faults, hint=error.hint) from None
    if json:
        print_json(found)
    else:
        print_text(render_check(found))
    if not found["ok"]:
        raise typer.Exit(1)
