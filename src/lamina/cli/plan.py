"""`lamina plan`: minutes, memory and money before they are spent."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.display import Terminal
from lamina.cli.output import print_json, print_text, size, table

if TYPE_CHECKING:
    from lamina.flows.plan import Plan
    from lamina.plan.price import Price
    from lamina.plan.time import Interval

TITLES = {
    "layer": "a layer",
    "update": "an update of it, {new} new rows",
    "full": "full fine-tuning",
    "scratch": "a compute-optimal run from scratch",
}
_UNITS = ((86400 * 365.25, "years"), (86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"))


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("plan", no_args_is_help=True)(plan)


def plan(
    on: Annotated[
        str,
        typer.Option(
            "--on",
            metavar="BASE",
            help="A stack or base of the store, a folder with a config.json, a .json file, or a "
            "known shape such as gpt3-175b.",
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="FILE", help="Rows to learn from; repeat for more files."),
    ] = None,
    rows: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="So many rows, where none are at hand.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Tokens of all these rows together.")
    ] = None,
    new_rows: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Rows of the update (default: a tenth of them)."),
    ] = None,
    hardware: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="this, rtx4090, h100, m3-max, laptop, or one of your own hardware.toml.",
        ),
    ] = "this",
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Measure this machine first: about 20 seconds, kept."),
    ] = False,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", metavar="FILE", help="Recipe file; the options override it."),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(metavar="N", help="Rank of every low-rank update.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="LINEAR", help="Linears to train on, such as q_proj; repeat."),
    ] = None,
    epochs: options.Epochs = None,
    steps: options.Steps = None,
    batch_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens in one optimiser step.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(metavar="TOKENS", help="Longest sequence, in tokens.")
    ] = None,
    format: options.Format = None,
    json: options.Json = False,
) -> None:
    """Say what a layer takes before you train it, beside full fine-tuning and a run from scratch.

    \b
    lamina plan --on smollm2-135m --data dolly.jsonl --probe
    lamina plan --on ./Qwen3-8B --rows 5000 --hardware rtx4090
    lamina plan --on gpt3-175b --rank 4 --target q_proj --target v_proj --hardware h100

    A configuration is enough: no weights are read, nothing is trained. On this machine minutes come
    from a probe (--probe, kept afterwards) or from layers trained here; on a named one they lie
    between two shares of its peak rate. Prices and rates are in hardware.toml; one of your own in
    the config folder (LAMINA_CONFIG) changes them and adds machines.
    """
    from lamina.cli.train import read_recipe
    from lamina.flows.plan import Request
    from lamina.flows.plan import plan as run

    overrides = {
        "rank": rank,
        "targets": target,
        "epochs": epochs,
        "steps": steps,
        "batch_tokens": batch_tokens,
        "max_length": max_length,
    }
    request = Request(
        on=on,
        recipe=read_recipe(recipe, overrides),
        data=data or (),
        format=format,
        rows=rows,
        tokens=tokens,
        new_rows=new_rows,
        hardware=hardware,
        probe=probe,
    )
    found = run(environment.open_store(), request, environment.hardware(), Terminal())
    if json:
        print_json(found.to_json())
    else:
        print_text(render(found))


def render(found: "Plan") -> str:
    """A table, and what an update costs beside each way, in a sentence."""
    layer = found.prices["layer"]
    rows = [
        [
            TITLES[way].format(new=found.new_rows),
            f"{price.trainable:,}",
            size(price.bytes),
            _memory(price, found.memory),
            _duration(price.seconds),
            "?" if price.kwh is None else _between(price.kwh, "kWh"),
            "?" if price.money is None else _between(price.money, found.currency),
        ]
        for way, price in found.prices.items()
    ]
    saved = found.model.parameters / layer.trainable
    lines = [
        f"{found.on}: {found.model.family}, {found.model.parameters:,} parameters, known from "
        f"{found.known_by}; {found.rows:,} rows, {layer.tokens:,} tokens to train on",
        f"on {found.title}; times from {found.source}",
        "",
        table(["", "trains", "bytes", "memory", "time", "energy", "price"], rows),
        "",
        f"A layer trains {saved:,.0f} times fewer parameters. {_sentence(found)}",
    ]
    return "\n".join(lines)


def _sentence(found: "Plan") -> str:
    from lamina.plan.price import ratios

    of = ratios(found.prices)
    return (
        f"For the price of one full fine-tuning the layer is updated {of['full']:,.0f} times, for "
        f"that of a run from scratch {of['scratch']:,.0f} times."
    )


def _memory(price: "Price", room: int | None) -> str:
    if room is None or price.memory <= room:
        return size(price.memory)
    return f"{size(price.memory)}, {-(-price.memory // room)} of them"


def _duration(found: "Interval | None") -> str:
    if found is None:
        return "?"
    unit, name = next(
        ((unit, name) for unit, name in _UNITS if found.middle >= 1.5 * unit), (1.0, "seconds")
    )
    return _between(found.times(1 / unit), name)


def _between(found: "Interval", unit: str) -> str:
    low, high = f"{_short(found.low)}", f"{_short(found.high)}"
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"


def _short(value: float) -> str:
    """Two or three digits that count."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"
