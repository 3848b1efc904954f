"""`lamina conflicts`: do two stacks' layers get in each other's way?"""

from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.display import Terminal
from lamina.cli.output import print_json, print_text, table

SHOWN = 10


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("conflicts", no_args_is_help=True)(conflicts)


def conflicts(
    a: options.Stack,
    b: options.Stack,
    all_: Annotated[
        bool, typer.Option("--all", help="Show every linear instead of the ten worst.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Compare what two stacks' layers do to the base, linear by linear, the worst first.

    \b
    lamina conflicts poet clerk
    lamina conflicts poet clerk --all

    Layers that both stacks have are left out. Nothing is run but arithmetic on the factors: how
    a merged stack answers is what its exams say.
    """
    from lamina.flows.conflicts import HEADER, compare

    found = compare(environment.open_store(), a, b, Terminal())
    if json:
        print_json(found.to_json())
        return
    rows = found.rows()
    shown = rows if all_ else rows[:SHOWN]
    parts = [found.heading(), *([table(HEADER, shown)] if shown else [])]
    if len(shown) < len(rows):
        parts.append(f"… and {len(rows) - len(shown)} more: --all")
    print_text("\n".join([*parts, found.meaning()]))
