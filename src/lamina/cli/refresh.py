"""`lamina refresh`: bring a stack up to date with new versions of its layers."""

from typing import TYPE_CHECKING, Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.output import print_json, print_text
from lamina.cli.rebase import Keep, Rung
from lamina.cli.train import stop_on_signals
from lamina.core.errors import UsageError

if TYPE_CHECKING:
    from lamina.flows.refresh_all import Outcome


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("refresh", no_args_is_help=True)(refresh)


def refresh(
    stacks: Annotated[
        list[str] | None, typer.Argument(metavar="STACK…", help="Names of stacks.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every stack that `lamina status` calls stale.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and what it may cost.")
    ] = False,
    keep: Keep = None,
    at_most: Rung = None,
    author: options.Author = None,
    accept_regression: options.AcceptRegression = None,
    ray: options.SpreadOver = None,
    processors: options.Processors = 1,
    json: options.Json = False,
) -> None:
    """Bring stale stacks up to date: like make, for models.

    \b
    lamina status
    lamina refresh agent --dry-run
    lamina refresh agent
    lamina refresh --all --ray 10.0.0.1:6379

    A layer that has a new version gives way to it. Each layer above is examined on its new parents
    as it is; only those that lost too much are corrected or trained again, the cheapest way that
    passes (see `lamina rebase --help`). Of several stacks, one that fails never stops the others
    (exit code 1 then); with --ray those that share nothing to carry are refreshed at once.
    """
    from lamina.cli.board import shown
    from lamina.flows import refresh_all as flow
    from lamina.flows.ladder.carry import KEEP
    from lamina.flows.refresh import refresh as refresh_one

    if bool(stacks) == everything:
        raise UsageError("give names of stacks, or --all", hint="see: lamina status")
    store = environment.open_store()
    names = flow.stale(store) if everything else tuple(dict.fromkeys(stacks or ()))
    how = flow.How(
        keep=KEEP if keep is None else keep,
        at_most=at_most,
        override=accept_regression,
        author=author or environment.author(),
        rates=environment.rates(),
    )
    one = len(names) == 1 and not everything
    with shown() as board, stop_on_signals() as should_stop:
        if dry_run or (one and ray is None):
            found = [
                refresh_one(store, name, board, should_stop, dry_run=dry_run, **how.arguments())
                for name in names
            ]
        else:
            outcomes = flow.refresh_all(
                store,
                names,
                how,
                board,
                should_stop,
                ray=ray is not None,
                address=environment.ray_address(ray),
                processors=processors,
            )
            _end(outcomes, as_json=json)
            return
    if json and one:
        print_json(found[0].to_json())
    elif json:
        named = zip(names, found, strict=True)
        print_json({"stacks": [{"stack": name, **each.to_json()} for name, each in named]})
    else:
        print_text("\n".join(each.render() for each in found) or "everything is current")


def _end(outcomes: "list[Outcome]", *, as_json: bool) -> None:
    """What became of several stacks; exit code 1 where one has no new name."""
    if as_json:
        print_json({"stacks": [each.to_json() for each in outcomes]})
    else:
        for each in outcomes:
            print_text(f"{each.name} {each.state}: {each.result}")
        if not outcomes:
            print_text("everything is current")
    if any(each.state in ("refused", "failed") for each in outcomes):
        raise typer.Exit(1)
