"""`lamina import`: take in what other tools made."""

from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.display import Terminal
from lamina.cli.output import print_json, print_text


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("import", no_args_is_help=True)(import_)


def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="PATH", help="A folder, a .safetensors or .gguf file, or hf:org/name[@rev]."
        ),
    ],
    on: Annotated[str, typer.Option("--on", metavar="STACK", help="What it was trained over.")],
    name: Annotated[str, typer.Option("--as", metavar="NAME", help="Name of the new stack.")],
    kind: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="KIND",
            help="peft, checkpoint, gguf-lora, kohya or mlx; detected and stated by default.",
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            "--rank",
            metavar="N",
            help="Where a difference of weights is approximated: at most this rank a linear "
            "(default: what is above the rounding of the stored weights, at most 128).",
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            metavar="E",
            help="The smallest rank that loses at most this share of the difference.",
        ),
    ] = None,
    dora: Annotated[
        str | None,
        typer.Option(
            "--dora", metavar="fold", help="Take the nearest low-rank update to a DoRA adapter."
        ),
    ] = None,
    ignore_rest: Annotated[
        bool,
        typer.Option(
            "--ignore-rest",
            help="Leave out what a layer cannot hold (embeddings, head, norms), and say the loss.",
        ),
    ] = False,
    licence: Annotated[
        str | None,
        typer.Option(metavar="SPDX", help="Licence of it (default: what the source says)."),
    ] = None,
    author: options.Author = None,
    accept_regression: options.AcceptRegression = None,
    json: options.Json = False,
) -> None:
    """Make a layer of what another tool wrote: an adapter, or a whole tuned model.

    \b
    lamina import ./my-adapter --on smollm2-135m --as support
    lamina import ./merged-model --on smollm2-135m --as support --tolerance 0.05
    lamina import adapter.gguf --on smollm2-135m --as support

    Read are PEFT adapters (rsLoRA, patterns, DoRA with --dora fold), whole checkpoints, GGUF LoRAs,
    kohya's and diffusers' files and mlx-lm's adapters. The layer's logits are compared with the
    source's before anything is stored, and what is lost is said. Pickles are never opened.
    """
    from lamina.flows.importing import Request, take_in

    done = take_in(
        environment.open_store(),
        Request(
            source=source,
            on=on,
            name=name,
            kind=kind,
            dora=dora,
            rank=rank,
            tolerance=tolerance,
            ignore_rest=ignore_rest,
            licence=licence,
            author=author or environment.author(),
            override=accept_regression,
        ),
        Terminal(),
    )
    if json:
        print_json(done)
    else:
        print_text(f"{done['name']} is @{done['stack'][7:19]}")
