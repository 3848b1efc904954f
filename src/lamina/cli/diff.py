"""`lamina diff`: the answers of two stacks side by side."""

from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.display import Terminal
from lamina.cli.output import print_json, print_text


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("diff", no_args_is_help=True)(diff)


def diff(
    a: options.Stack,
    b: options.Stack,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", metavar="TEXT", help="Ask both this; repeat.")
    ] = None,
    rows: Annotated[
        int, typer.Option(metavar="N", min=1, help="Questions shown from each exam.")
    ] = 3,
    json: options.Json = False,
) -> None:
    """Show what two stacks are made of and how their answers differ.

    \b
    lamina diff agent:v1 agent:v2
    lamina diff smollm2-135m agent --prompt "Book a table for two"

    Without --prompt the questions come from the exams that the stacks carry.
    """
    from lamina.flows.compare import compare

    report = compare(environment.open_store(), a, b, prompt or [], rows, Terminal())
    if json:
        print_json(report.to_json())
    else:
        print_text(report.render())
