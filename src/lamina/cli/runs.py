"""`lamina runs`: training runs on this machine, finished or waiting to be resumed."""

from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.output import print_json, print_text, table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("runs")(runs)


def runs(
    all_: Annotated[bool, typer.Option("--all", help="Finished runs too.")] = False,
    json: options.Json = False,
) -> None:
    """List training runs that wait to be resumed (with --all: every run)."""
    from lamina.flows.runs import all_runs

    found = []
    for run in all_runs(environment.open_store()):
        if run.finished and not all_:
            continue
        result = run.result
        state = "waiting" if result is None else result.name or "trained, not named"
        steps = [event["step"] for event in run.events() if event["event"] == "step"]
        found.append(
            {
                "run": run.id,
                "name": run.spec.name,
                "on": run.spec.on,
                "step": steps[-1] if steps else 0,
                "state": state,
            }
        )
    if json:
        print_json({"runs": found})
    elif found:
        rows = [[str(r["run"]), str(r["on"]), str(r["step"]), str(r["state"])] for r in found]
        print_text(table(["run", "on", "step", "state"], rows))
    else:
        print_text("no run is waiting")
