"""`lamina farm`: many layers at once."""

import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lamina.cli import environment, options
from lamina.cli.display import Terminal
from lamina.cli.output import print_json, print_text
from lamina.cli.train import stop_on_signals
from lamina.core.errors import UsageError
from lamina.core.plain import shown_in_line

if TYPE_CHECKING:
    from lamina.flows.farm import Outcome


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("farm", no_args_is_help=True)(farm)


def farm(
    jobs: Annotated[Path, typer.Argument(metavar="JOBS.toml", help="The file of jobs.")],
    ray: options.RayAddress = None,
    processors: Annotated[
        int, typer.Option(metavar="N", min=1, help="Processors of each job.")
    ] = 1,
    json: options.Json = False,
) -> None:
    """Train many layers at once on a Ray cluster, each through its own gate.

    \b
    lamina farm customers.toml
    lamina farm customers.toml --ray 10.0.0.1:6379 --processors 4

    \b
    customers.toml:
      [defaults]
      on = "assistant"
      recipe = { rank = 8, epochs = 2 }
      [[job]]
      name = "acme"
      data = ["acme.jsonl"]
      [[job]]
      name = "globex"
      data = ["globex.jsonl"]
      recipe = { rank = 16 }

    Machines of the cluster share the store: a folder mounted at the same place. A job that fails
    never stops the others; one whose process dies is begun again from its checkpoint, three times
    at most. Ctrl-C saves all; the same command goes on. Exit code 1 where a job has no name at the
    end. Other keys of a job: exam, format, skip_bad, private, licence, author, accept_regression.
    """
    from lamina.flows import farm as flow

    table = _table(jobs)
    asked = flow.read(table, jobs.absolute().parent, str(jobs))
    store, board = environment.open_store(), Board()
    with stop_on_signals() as should_stop:
        found = flow.farm(
            store,
            asked,
            board,
            should_stop,
            address=environment.ray_address(ray),
            processors=processors,
            rates=environment.rates(),
        )
    show(found, as_json=json)


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"jobs {path} cannot be read: {error}") from None


class Board(Terminal):
    """A line for each job: rewritten in place in a terminal, once at its end elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: dict[str, str] = {}

    def event(self, event: Mapping[str, Any]) -> None:
        """Show a job's line."""
        if event["event"] != "job":
            super().event(event)
            return
        name, text = event["name"], str(event["text"]).partition("\n")[0]
        line = shown_in_line(f"{name}: {text}")
        if not sys.stderr.isatty():
            if event["done"]:
                sys.stderr.write(line + "\n")
                sys.stderr.flush()
            return
        if name not in self._lines:
            sys.stderr.write("\n")
        self._lines[name] = line
        up = len(self._lines) - list(self._lines).index(name)
        sys.stderr.write(f"\033[{up}A\r\033[K{line}\033[{up}B\r")
        sys.stderr.flush()


def show(found: "list[Outcome]", *, as_json: bool) -> None:
    """The end of a farm; exit code 1 where a job has no name."""
    named = sum(each.state == "named" for each in found)
    if as_json:
        fields = ("name", "state", "result", "layer", "tries", "seconds")
        print_json({"jobs": [{key: getattr(each, key) for key in fields} for each in found]})
    else:
        for each in found:
            if each.state != "named":
                print_text(f"{each.name} {each.state}: {each.result}")
        print_text(f"{named} of {len(found)} jobs named")
    if named < len(found):
        raise typer.Exit(1)
