"""`lamina verify`: check every byte of the store."""

import typer

from lamina.cli import environment, options
from lamina.cli.output import print_json, print_text, size


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("verify")(verify)


def verify(json: options.Json = False) -> None:
    """Read everything in the store and compare it with its digests; exit 1 on any fault."""
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
