"""`lamina import`: take in adapters that other tools made."""

from pathlib import Path
from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.display import Terminal
from lamina.cli.output import print_json, print_text

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Take in adapters that other tools made."
)


@app.command("peft", no_args_is_help=True)
def peft(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder with adapter_config.json.")
    ],
    on: Annotated[str, typer.Option("--on", metavar="STACK", help="What it was trained over.")],
    name: Annotated[str, typer.Option("--as", metavar="NAME", help="Name of the new stack.")],
    licence: Annotated[
        str | None, typer.Option(metavar="SPDX", help="Licence of the adapter.")
    ] = None,
    author: options.Author = None,
    accept_regression: options.AcceptRegression = None,
    json: options.Json = False,
) -> None:
    """Import a PEFT LoRA adapter as a layer over a stack.

    \b
    lamina import peft ./my-adapter --on smollm2-135m --as support

    Refused, with every reason at once: pickled weights, DoRA, trained biases or embeddings,
    shapes that do not fit, numbers that are not finite.
    """
    from lamina.flows.adapters import import_peft

    imported = import_peft(
        environment.open_store(),
        directory,
        on,
        name,
        Terminal(),
        licence=licence,
        author=author or environment.author(),
        override=accept_regression,
    )
    if json:
        print_json(imported)
    else:
        print_text(f"{imported['name']} is @{imported['stack'][7:19]}")
