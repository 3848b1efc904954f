"""`lamina refresh`: bring a stack up to date with new versions of its layers."""

from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.display import Terminal
from lamina.cli.output import print_json, print_text
from lamina.cli.rebase import Keep, Rung


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("refresh", no_args_is_help=True)(refresh)


def refresh(
    stack: options.Stack,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and what it may cost.")
    ] = False,
    keep: Keep = None,
    at_most: Rung = None,
    author: options.Author = None,
    accept_regression: options.AcceptRegression = None,
    json: options.Json = False,
) -> None:
    """Bring a stale stack up to date: like make, for models.

    \b
    lamina status
    lamina refresh agent --dry-run
    lamina refresh agent

    A layer that has a new version gives way to it. Each layer above is examined on its new parents
    as it is; only those that lost too much are corrected or trained again, the cheapest way that
    passes (see `lamina rebase --help`).
    """
    from lamina.cli.train import stop_on_signals
    from lamina.flows.ladder.carry import KEEP
    from lamina.flows.refresh import refresh as flow

    store = environment.open_store()
    with stop_on_signals() as should_stop:
        refreshed = flow(
            store,
            stack,
            Terminal(),
            should_stop,
            dry_run=dry_run,
            keep=KEEP if keep is None else keep,
            at_most=at_most,
            override=accept_regression,
            author=author or environment.author(),
            rates=environment.rates(),
        )
    if json:
        print_json(refreshed.to_json())
    else:
        print_text(refreshed.render())
