"""`lamina quickstart`: the main job on the embedded base, in minutes."""

import typer

from lamina.cli import environment, options
from lamina.cli.display import Terminal
from lamina.cli.output import print_json, print_text
from lamina.cli.train import stop_on_signals


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("quickstart")(quickstart)


def quickstart(json: options.Json = False) -> None:
    """Train two real layers on a small base, one over the other, and examine everything.

    Pulls smollm2-135m, trains a tool-use layer on function-calling data, stacks a reasoning layer
    on it, and prints the exam matrix and the cost. About ten minutes on two cores. Run it again
    and it goes on where it stopped.
    """
    from lamina.flows.quickstart import quickstart as run

    with stop_on_signals() as should_stop:
        report = run(environment.open_store(), Terminal(), should_stop)
    if json:
        print_json(report.to_json())
    else:
        print_text(report.render())
