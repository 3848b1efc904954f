"""`lamina sweep`: one layer in many ways, the best by exam."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lamina.cli import options
from lamina.cli.farm import read_table, spread
from lamina.cli.output import print_json, print_text

if TYPE_CHECKING:
    from lamina.flows.sweep import Swept, Trial


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("sweep", no_args_is_help=True)(sweep)


def sweep(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="What to try.")],
    trials: Annotated[
        int | None,
        typer.Option(metavar="N", min=2, help="How many combinations (all, or 16 of them)."),
    ] = None,
    ray: options.RayAddress = None,
    processors: options.Processors = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the combinations, and train nothing.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Train a layer in many ways on a Ray cluster; the best by exam gets the name.

    \b
    lamina sweep agent.toml --dry-run
    lamina sweep agent.toml --ray 10.0.0.1:6379

    \b
    agent.toml:
      name = "agent"
      on = "assistant"
      data = ["tools.jsonl"]
      recipe = { epochs = 2 }
      [search]
      rank = [4, 8, 16]
      lr = { low = 1e-4, high = 2e-3 }
      targets = [["all-linear"], ["q_proj", "v_proj"]]

    Under [search] stands any key of a recipe, with values or a range, and `data` with lists of
    files (mixtures; all are asked the rows held out of any). Trials whose held-out loss lags behind
    after 10 or 30% are ended early. The others land as layers, each with its exam; the best of
    those that pass the gate is chosen by exam, never by training loss. Ctrl-C saves all; the same
    command goes on. Other keys: trials, seed (of the draw), choose_by (a scorer), and those of
    `lamina farm`.
    """
    from lamina.flows import sweep as flow
    from lamina.flows import trials as plan

    asked = plan.read(read_table(recipe), recipe.absolute().parent, str(recipe))
    if trials is not None:
        asked = asked.model_copy(update={"trials": trials})
    if dry_run:
        _list(plan.trials_of(asked), as_json=json)
        return
    show(spread(flow.sweep, asked, ray, processors), as_json=json)


def _list(combinations: list[dict[str, object]], *, as_json: bool) -> None:
    from lamina.flows.sweep import text_of

    if as_json:
        print_json({"trials": combinations})
    else:
        for number, values in enumerate(combinations):
            print_text(f"trial {number}: {text_of(values)}")


def show(swept: "Swept", *, as_json: bool) -> None:
    """The end of a sweep, the best first."""
    if as_json:
        print_json(
            {
                "name": str(swept.learned.name),
                "layer": swept.learned.layer.digest,
                "stack": swept.learned.stack.digest,
                "best": swept.best.number,
                "alike": list(swept.alike),
                "trials": [trial.to_json() for trial in swept.trials],
            }
        )
        return
    for trial in swept.trials:
        print_text(_line(trial))
    print_text(f"{swept.learned.name} is trial {swept.best.number}: {swept.best.text}")
    if swept.alike:
        numbers = ", ".join(map(str, sorted(swept.alike)))
        print_text(
            f"the exam does not tell it from trial{'s' if len(swept.alike) > 1 else ''} {numbers}; "
            "more held-out rows would"
        )


def _line(trial: "Trial") -> str:
    """A trial as a row."""
    if trial.scores:
        found = " · ".join(f"{each.exam} {each.value:.4g}" for each in trial.scores)
        if trial.layer is not None:
            found += f" · @{trial.layer[7:19]}"
    elif trial.loss is not None:
        found = f"held-out loss {trial.loss:.4f} after {trial.percent}%"
    else:
        found = ""
    why = f": {trial.fault}" if trial.fault else ""
    return f"trial {trial.number} ({trial.text}) {trial.state}{why} · {found}".rstrip(" ·")
