"""`lamina exam`: examine a stack."""

from typing import Annotated, Any

import typer

from lamina.cli import environment, options
from lamina.cli.display import Terminal
from lamina.cli.output import print_json, print_text


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("exam", no_args_is_help=True)(exam)


def exam(
    stack: options.Stack,
    exam: Annotated[
        list[str] | None,
        typer.Option("--exam", metavar="FILE", help="Questions of your own; repeat."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against", metavar="STACK", help="Compare with this stack (default: the parent)."
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Ask again instead of using recorded results.")
    ] = False,
    ray: options.SpreadOver = None,
    processors: options.Processors = 1,
    json: options.Json = False,
) -> None:
    """Run the exams of every layer in a stack and compare with its parent, question by question.

    \b
    lamina exam agent
    lamina exam agent --against agent:v1 --exam my_questions.jsonl

    Intervals are 95%. Results are recorded, so the same exam of the same stack runs once. With
    --ray, all exams are sat at once, each in a process of its own.
    """
    asked: dict[str, Any] = {"against": against, "files": exam or [], "fresh": fresh}
    store = environment.open_store()
    if ray is None:
        from lamina.flows.examine import examine_stack

        examination = examine_stack(store, stack, Terminal(), **asked)
    else:
        from lamina.cli.board import shown
        from lamina.flows.sitting import examine_across

        address = environment.ray_address(ray)
        with shown() as board:
            examination = examine_across(
                store, stack, board, **asked, address=address, processors=processors
            )
    if json:
        print_json(examination.to_json())
    else:
        print_text(examination.render())
