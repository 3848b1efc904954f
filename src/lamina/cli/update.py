"""`lamina update`: a new version of a layer from new rows."""

from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.display import Terminal
from lamina.cli.output import print_json, print_text


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("update", no_args_is_help=True)(update)


def update(
    stack: options.Stack,
    data: Annotated[
        list[str], typer.Option("--data", metavar="FILE", help="New rows; repeat for more files.")
    ],
    layer: Annotated[
        str | None,
        typer.Option("--layer", metavar="LAYER", help="Which layer, by name or digest; the top."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="NAME",
            help="Name that moves. Default: the stack's own for its top layer, else the layer's.",
        ),
    ] = None,
    epochs: options.Epochs = None,
    lr: options.LearningRate = None,
    steps: options.Steps = None,
    max_minutes: options.MaxMinutes = None,
    memory: options.Memory = None,
    rehearsal: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Share of tokens that are its own old rows."),
    ] = None,
    protect: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help="Keep off the directions that hold this share of old inputs."
        ),
    ] = None,
    above: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Leave this share of the decoder's depth, from below, as it is: 0.67 for facts.",
        ),
    ] = None,
    drift: Annotated[
        float | None, typer.Option(metavar="PULL", help="Pull back to the old version's factors.")
    ] = None,
    known: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            help="Leave out rows whose tokens all have this probability, mend those that get lost.",
        ),
    ] = None,
    seed: options.Seed = None,
    format: options.Format = None,
    skip_bad: options.SkipBad = False,
    private: Annotated[
        bool,
        typer.Option(
            "--private",
            help="Withhold the rows and the exam's questions; a private layer stays private.",
        ),
    ] = False,
    licence: options.Licence = None,
    author: options.Author = None,
    accept_regression: options.AcceptRegression = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Learn new rows into a layer that exists: a new version, gated against the old one.

    \b
    lamina update support --data july.jsonl
    lamina update agent --layer support --data july.jsonl

    Starts from the layer as it is and mixes old rows in: the files it was trained on where they
    still lie on this machine, else the rehearsal set that travels with it. Rows already seen are
    left out; a new answer to an old question replaces the old one. What stands above the layer
    goes stale: `lamina status` shows it, `lamina refresh` mends it.
    """
    from lamina.cli.train import finish, memory_size, show
    from lamina.flows import update as flow

    overrides = {
        "epochs": epochs,
        "lr": lr,
        "steps": steps,
        "max_minutes": max_minutes,
        "rehearsal": rehearsal,
        "protect": protect,
        "above": above,
        "drift": drift,
        "known": known,
        "seed": seed,
    }
    request = flow.Request(
        stack=stack,
        data=data,
        layer=layer,
        name=name,
        overrides=tuple((key, value) for key, value in overrides.items() if value is not None),
        format=format,
        skip_bad=skip_bad,
        private=private,
        licence=licence,
        author=author or environment.author(),
        rates=environment.rates(),
        accept_regression=accept_regression,
        force=force,
        memory=memory_size(memory),
    )
    store, reporter = environment.open_store(), Terminal()
    run = flow.prepare(store, request, reporter)
    if run is not None:
        show(finish(store, run, reporter), as_json=json)
    elif json:
        print_json({"layer": None, "stack": None, "name": None, "metrics": None, "cost": None})
    else:
        print_text("nothing to learn: every row had been seen before")
