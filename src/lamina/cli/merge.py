"""`lamina merge`: parallel layers as one."""

from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.display import Terminal
from lamina.cli.output import print_json, print_text


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("merge", no_args_is_help=True)(merge)


def merge(
    stacks: Annotated[
        list[str],
        typer.Argument(metavar="STACK", help="Two or more stacks over one parent."),
    ],
    name: Annotated[str, typer.Option("--as", metavar="NAME", help="Name of the merged stack.")],
    method: Annotated[
        str,
        typer.Option(
            metavar="METHOD", help="concat, average, ties, dare, knots or learned; see above."
        ),
    ] = "concat",
    weight: Annotated[
        list[float] | None,
        typer.Option(
            metavar="W",
            help="One a stack, in their order (default: 1); learned weights start from them.",
        ),
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(metavar="D", help="Share of entries kept: ties and knots (0.2), dare (0.5)."),
    ] = None,
    examples: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Rows to learn the weights from; repeat. Default: the rehearsal sets.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Seed of what dare drops (0).")
    ] = None,
    author: options.Author = None,
    accept_regression: options.AcceptRegression = None,
    despite: options.Despite = None,
    json: options.Json = False,
) -> None:
    """Make one layer of what several stacks have above their common parent.

    \b
    lamina merge poet clerk --as both
    lamina merge poet clerk --as both --method learned --examples both.jsonl
    lamina merge poet clerk --as both --weight 1 --weight 0.5

    \b
    concat    the sum, exactly: layers for different tasks; the default
    average   the mean, exactly: layers for the same task, from different data
    ties      each layer's largest entries, majority of signs: layers that contradict each other
    dare      random entries, made larger: many layers that are much alike
    knots     ties in a basis common to all: when ties loses too much
    learned   the sum with weights that answer some rows best: when the sum is too strong

    The merged layer stands on the common parent and carries every exam. The table shows parent,
    each stack alone and the merged one on all of them. The gate compares with the parent.
    """
    from lamina.flows import merge as flow

    merged = flow.merge(
        environment.open_store(),
        stacks,
        name=name,
        reporter=Terminal(),
        method=method,
        weights=weight or (),
        density=density,
        examples=examples or (),
        seed=seed,
        override=accept_regression,
        despite=despite,
        author=author or environment.author(),
    )
    if json:
        print_json(merged)
    else:
        print_text(flow.render(merged))
