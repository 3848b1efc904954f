"""`lamina advise`: which recipe, and why."""

from pathlib import Path
from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.display import Terminal
from lamina.cli.output import print_json, print_text


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("advise", no_args_is_help=True)(advise)


def advise(
    data: Annotated[list[str], typer.Argument(metavar="DATA…", help="Rows to learn from.")],
    on: Annotated[str, typer.Option("--on", metavar="STACK", help="Stack to train over.")],
    minutes: Annotated[
        float, typer.Option(min=0.1, metavar="N", help="Minutes that training may take.")
    ] = 10.0,
    probe_minutes: Annotated[
        float, typer.Option(min=0.05, metavar="N", help="Minutes for trying, about.")
    ] = 4.0,
    apply: Annotated[
        Path | None,
        typer.Option("--apply", metavar="FILE", help="Write the recipe there, for --recipe."),
    ] = None,
    format: options.Format = None,
    skip_bad: options.SkipBad = False,
    seed: options.Seed = None,
    json: options.Json = False,
) -> None:
    """Try recipes on these rows for a few minutes, and say which to train with and why.

    \b
    lamina advise dolly.jsonl --on smollm2-135m --minutes 15 --apply recipe.toml
    lamina train --on smollm2-135m --data dolly.jsonl --as assistant --recipe recipe.toml

    Rank, targets and learning rate by successive halving: all candidates for a few steps, the
    better third for three times as many. Epochs by the time at hand. Judged on rows kept out of
    the training rows; of two that cannot be told apart the smaller is taken. Ctrl-C after the
    first rung goes by what is there.
    """
    from lamina.core.files import atomic_write
    from lamina.flows.advise import advise as run

    advice = run(
        environment.open_store(),
        data,
        on,
        Terminal(),
        minutes=minutes,
        probe_minutes=probe_minutes,
        format=format,
        skip_bad=skip_bad,
        seed=0 if seed is None else seed,
    )
    if apply is not None:
        atomic_write(apply, advice.toml().encode())
    if json:
        print_json(advice.to_json())
        return
    print_text(advice.render())
    if apply is not None:
        print_text(f"written to {apply}: lamina train --recipe {apply} --on {on} --as NAME …")
