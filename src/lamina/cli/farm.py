"""`lamina farm`: many layers at once."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from lamina.cli import environment, options
from lamina.cli.output import print_json, print_text
from lamina.cli.train import stop_on_signals
from lamina.core.errors import UsageError

if TYPE_CHECKING:
    from lamina.flows.farm import Outcome

T = TypeVar("T")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("farm", no_args_is_help=True)(farm)


def farm(
    jobs: Annotated[Path, typer.Argument(metavar="JOBS.toml", help="The file of jobs.")],
    ray: options.RayAddress = None,
    processors: options.Processors = 1,
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

    asked = flow.read(read_table(jobs), jobs.absolute().parent, str(jobs))
    show(spread(flow.farm, asked, ray, processors), as_json=json)


def read_table(path: Path) -> dict[str, Any]:
    """A file in TOML. Raises UsageError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None


def spread(flow: Callable[..., T], asked: object, ray: str | None, processors: int) -> T:
    """Do over a cluster what a file asked for: `flow` is `flows.farm.farm` or one that takes the
    same. Progress is shown on a board; Ctrl-C saves all."""
    from lamina.cli.board import shown

    store = environment.open_store()
    with shown() as board, stop_on_signals() as should_stop:
        return flow(
            store,
            asked,
            board,
            should_stop,
            address=environment.ray_address(ray),
            processors=processors,
            rates=environment.rates(),
        )


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
