"""`lamina rebase`: carry a stack's layers to another parent or base."""

from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.display import Terminal
from lamina.cli.output import print_json, print_text
from lamina.core.errors import UsageError

Keep = Annotated[
    float | None,
    typer.Option(
        "--keep",
        metavar="SHARE",
        min=0,
        help="Share of each layer's gain that must stay (0.95).",
    ),
]
Rung = Annotated[
    str | None,
    typer.Option(
        "--at-most", metavar="RUNG", help="Dearest rung to try: copy, project, distil or retrain."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("rebase", no_args_is_help=True)(rebase)


def rebase(
    stack: options.Stack,
    onto: Annotated[
        str | None, typer.Option("--onto", metavar="STACK", help="The stack to stand on.")
    ] = None,
    onto_base: Annotated[
        str | None, typer.Option("--onto-base", metavar="BASE", help="The base to stand on.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--as", metavar="NAME", help="Name of the result; needed on another base."),
    ] = None,
    keep: Keep = None,
    at_most: Rung = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="FILE", help="The layer's own data, to train it anew."),
    ] = None,
    author: options.Author = None,
    accept_regression: options.AcceptRegression = None,
    json: options.Json = False,
) -> None:
    """Carry a stack's layers to another parent or another base, as cheaply as the exams allow.

    \b
    lamina rebase agent --onto assistant:v2
    lamina rebase agent --onto-base gemma --as agent-gemma

    A ladder, cheapest rung first: copy the factors; project them onto what the new parents changed;
    distil the old stack into a new layer; retrain from the recipe where the data is at hand. The
    first that keeps the layer's gain on its exams, and harms no exam beneath, is taken. The report
    says for each layer which rung it was, what it kept, and what it cost beside training it anew.
    """
    if (onto is None) == (onto_base is None):
        raise UsageError("give --onto STACK or --onto-base BASE", hint="see: lamina rebase --help")
    from lamina.cli.train import stop_on_signals
    from lamina.flows import rebase as flow
    from lamina.flows.ladder.carry import KEEP

    store = environment.open_store()
    target = onto or onto_base or ""
    if onto_base is not None and onto_base not in store.bases():
        raise UsageError(f"no base {onto_base!r}", hint="see: lamina base list")
    request = flow.Request(
        stack=stack,
        onto=target,
        name=name,
        keep=KEEP if keep is None else keep,
        at_most=at_most,
        data=data or (),
        override=accept_regression,
        author=author or environment.author(),
        rates=environment.rates(),
    )
    with stop_on_signals() as should_stop:
        rebased = flow.rebase(store, request, Terminal(), should_stop)
    if json:
        print_json(rebased.to_json())
    else:
        print_text(rebased.render())
