"""`lamina export`: hand a stack to other tools, with a check that it is the same model."""

from pathlib import Path
from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.display import Terminal
from lamina.cli.output import print_json, print_text


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export", no_args_is_help=True)(export)


def export(
    stack: options.Stack,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that does not exist.")],
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="peft|hf", help="peft: one concatenated adapter. hf: merged weights."
        ),
    ],
    json: options.Json = False,
) -> None:
    """Write a stack for another tool, load it back, and compare it with the stack's own logits.

    \b
    lamina export agent ./agent-adapter --to peft
    lamina export agent ./agent-model --to hf

    Nothing is left behind when the check fails.
    """
    from lamina.flows.adapters import export as run

    exported = run(environment.open_store(), stack, directory, to, Terminal())
    if json:
        print_json(exported)
    else:
        print_text(
            f"{exported['directory']}: {exported['to']}, largest relative difference of logits "
            f"{exported['parity']['max_rel']:.1e} (limit {exported['parity']['limit']:.0e})"
        )
