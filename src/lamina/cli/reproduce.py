"""`lamina reproduce`: train a layer again from its own recipe and compare digests."""

from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.display import Terminal
from lamina.cli.output import print_json, print_text
from lamina.cli.train import stop_on_signals


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("reproduce", no_args_is_help=True)(reproduce)


def reproduce(
    layer: Annotated[str, typer.Argument(metavar="LAYER", help="A layer, or a stack: its top.")],
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="FILE", help="Its data (default: where it lay then)."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Train a layer again from the recipe inside it; exit 1 unless the digests are equal.

    \b
    lamina reproduce agent
    lamina reproduce @3fa2b1c0d4e5 --data tools.jsonl

    Digests agree on a machine of the same kind with the same library versions; elsewhere the
    numbers agree closely, and the held-out loss tells how closely.
    """
    from lamina.flows.reproduce import reproduce as run

    with stop_on_signals() as should_stop:
        report = run(environment.open_store(), layer, data or [], Terminal(), should_stop)
    if json:
        print_json(report.to_json())
    else:
        print_text(report.render())
    if not report.equal:
        raise typer.Exit(1)
