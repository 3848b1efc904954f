"""`lamina votes`: preference pairs from comparing two stacks' answers."""

import typer

from lamina.cli import environment, options
from lamina.cli.output import print_json, print_text, table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("votes")(votes)


def votes(json: options.Json = False) -> None:
    """Show the votes cast in the web UI: where the file is, and who won how often.

    Each line of that file is a preference pair (prompt, chosen, rejected) to train on.
    """
    from lamina.flows.votes import path_of, tally
    from lamina.flows.votes import votes as cast

    store = environment.open_store()
    found = cast(store)
    rows = tally(found)
    path = str(path_of(store))
    if json:
        cast_votes = [vote.model_dump(mode="json") for vote in found]
        print_json({"path": path, "tally": rows, "votes": cast_votes})
    elif not found:
        print_text("no votes yet: compare two stacks in the web UI")
    else:
        body = [[r["a"], r["b"], str(r["a_wins"]), str(r["b_wins"])] for r in rows]
        print_text(table(["a", "b", "a better", "b better"], body))
        print_text(f"{len(found)} preference pairs in {path}")
