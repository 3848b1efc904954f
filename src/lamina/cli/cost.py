"""`lamina cost`: what a stack took, who spent it, and what else would have."""

from pathlib import Path
from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.output import print_json, print_text


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("cost")(cost)


def cost(
    stack: options.Stack,
    rows: Annotated[
        int | None,
        typer.Option(
            "--rows",
            metavar="N",
            min=1,
            help="Also say by how much N more rows should lower the held-out loss.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE.svg", help="Draw it: an SVG that stands by itself."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Show what a stack and all that led to it took, beside full fine-tuning and a full run.

    \b
    lamina cost agent
    lamina cost agent --rows 500
    lamina cost agent --plot agent.svg

    Counted are the stack's layers, those of the older versions of its name, and what these were
    made from: seconds, operations, energy where the machine measures it, and money where
    hardware.toml has prices. --rows fits the fine-tuning law to the name's versions; it takes
    three trainings on different numbers of rows with the same questions.
    """
    from lamina.flows import cost_text
    from lamina.flows.spending import spending

    store = environment.open_store()
    spent = spending(store, stack)
    more = None
    if rows is not None:
        from lamina.flows.prospects import prospect  # numpy, which the rest does without

        more = prospect(store, stack, rows)
    if plot is not None:
        from lamina.core.files import atomic_write
        from lamina.flows.cost_plot import plot as draw

        atomic_write(plot, draw(spent).encode())
    if json:
        print_json(cost_text.to_json(spent) | ({"more_rows": more.to_json()} if more else {}))
        return
    said = [cost_text.render(spent)]
    said += [more.render()] if more else []
    said += [f"drawn: {plot}"] if plot is not None else []
    print_text("\n\n".join(said))
