"""`lamina gc`: free the space of what nothing refers to."""

from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.output import print_json, print_text, size


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("gc")(gc)


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    grace: Annotated[
        float,
        typer.Option(
            metavar="HOURS", min=0, help="Keep what is younger: others may be writing it."
        ),
    ] = 1.0,
    json: options.Json = False,
) -> None:
    """Remove objects that no name, base or recorded evidence reaches, and stale temp files."""
    report = environment.open_store().collect(grace_seconds=3600 * grace, dry_run=dry_run)
    if json:
        print_json(report.model_dump(mode="json"))
    else:
        verb = "would go" if dry_run else "removed"
        print_text(f"{len(report.blobs)} objects {verb}, {size(report.bytes)}")
        if report.young:
            print_text(f"{report.young} more are younger than {grace:g} h and stay (--grace)")
