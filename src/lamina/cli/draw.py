"""`lamina draw`: images by a stack over an image base."""

from pathlib import Path
from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.display import Terminal
from lamina.cli.output import print_json, print_text


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("draw", no_args_is_help=True)(draw)


def draw(
    stack: options.Stack,
    prompt: Annotated[
        list[str], typer.Argument(metavar="PROMPT…", help="What to draw; several make rows.")
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The PNG file that is written.")
    ] = Path("drawn.png"),
    steps: Annotated[
        int, typer.Option(metavar="N", min=1, max=1000, help="Steps of drawing.")
    ] = 25,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Decides what is drawn.")] = 0,
    guidance: Annotated[
        float, typer.Option(metavar="G", min=1, max=50, help="How closely to keep to the prompt.")
    ] = 4.0,
    negative: Annotated[str, typer.Option(metavar="TEXT", help="What to keep away from.")] = "",
    grid: Annotated[
        int, typer.Option("--grid", metavar="N", min=1, help="Images for each prompt, in a row.")
    ] = 1,
    json: options.Json = False,
) -> None:
    """Draw with a stack over an image base.

    \b
    lamina draw tiles "a red dragon"
    lamina draw tiles "a red dragon" "a blue wizard" --grid 4 --seed 7 --out both.png

    The same stack, prompt, seed and steps give the same image on one machine. With --grid, seeds
    go up from --seed, and each prompt has a row.
    """
    from lamina.bases.draw import Style
    from lamina.flows.draw import to_file

    style = Style(steps=steps, guidance=guidance, negative=negative)
    found = to_file(
        environment.open_store(), stack, prompt, out, style, Terminal(), seed=seed, count=grid
    )
    if json:
        print_json(found)
    else:
        print_text(f"{out}: {len(found['images'])} images by {stack}")
