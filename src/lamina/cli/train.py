"""`lamina train`: train a layer over a stack."""

import json as json_module
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lamina.cli import environment, options
from lamina.cli.display import Terminal
from lamina.cli.output import print_json, print_text
from lamina.core.errors import UsageError

if TYPE_CHECKING:
    from lamina.core.recipe import Recipe
    from lamina.core.report import Reporter
    from lamina.flows.learn import Learned
    from lamina.flows.runs import Run
    from lamina.store.layout import Store


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train", no_args_is_help=True)(train)


def train(
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="FILE", help="Rows to learn from; repeat for more files."),
    ] = None,
    on: Annotated[
        str | None, typer.Option("--on", metavar="STACK", help="Stack or base to train over.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Name of the stack that comes out.")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe",
            metavar="FILE",
            help="Recipe file (TOML or JSON); the options from --rank to --scorer override it.",
        ),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(metavar="N", help="Rank of every low-rank update.")
    ] = None,
    module_rank: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LINEAR=N", help="Another rank for some linears: down_proj=24; repeat."
        ),
    ] = None,
    lr: options.LearningRate = None,
    epochs: options.Epochs = None,
    steps: options.Steps = None,
    max_minutes: options.MaxMinutes = None,
    memory: options.Memory = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LINEAR",
            help="Linears to train on, such as q_proj; repeat. Default: all. Of images: conv, too.",
        ),
    ] = None,
    scaling: Annotated[str | None, typer.Option(metavar="RULE", help="lora or rslora.")] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens in one optimiser step.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(metavar="TOKENS", help="Longest sequence, in tokens.")
    ] = None,
    overlong: Annotated[
        str | None,
        typer.Option(metavar="WHAT", help="Longer rows: split, truncate or refuse."),
    ] = None,
    held_out: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Share of rows kept for the exam."),
    ] = None,
    rehearsal: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Share of tokens from the layers beneath."),
    ] = None,
    rehearsal_set: Annotated[
        str | None,
        typer.Option(
            "--rehearsal-set",
            metavar="KIND",
            help="What the layer carries for whoever trains above it: sample (of its rows), "
            "synthesised (rows the stack writes; the default with --private) or none.",
        ),
    ] = None,
    protect: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help="Keep off the directions that hold this share of old inputs."
        ),
    ] = None,
    min_snr: Annotated[
        float | None,
        typer.Option(metavar="GAMMA", help="Of images: min-SNR weighting; 0 weighs nothing."),
    ] = None,
    caption_dropout: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Of images: captions left out.")
    ] = None,
    seed: options.Seed = None,
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SCORER",
            help="Scorer of the layer's exam: loss, exact, numeric, choice, tool_call; of images "
            "denoise, retrieve, colour; repeat.",
        ),
    ] = None,
    format: options.Format = None,
    skip_bad: options.SkipBad = False,
    exam: Annotated[
        list[str] | None,
        typer.Option("--exam", metavar="FILE", help="Further exam questions; repeat."),
    ] = None,
    private: Annotated[
        bool,
        typer.Option("--private", help="Withhold the rows and the exam's questions."),
    ] = False,
    licence: options.Licence = None,
    author: options.Author = None,
    accept_regression: options.AcceptRegression = None,
    force: options.Force = False,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Read the base's weights from the store as they are used, in place of loading "
            "them; done anyway where they do not fit into memory.",
        ),
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN", help="Go on with a run: its id, or 'last'."),
    ] = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="Train anew although nothing changed since the last time."),
    ] = False,
    workers: options.Workers = None,
    ray: options.RayAddress = None,
    json: options.Json = False,
) -> None:
    """Train a layer over a stack, examine the new stack, and name it if nothing got worse.

    \b
    lamina train --on smollm2-135m --data dolly.jsonl --as assistant
    lamina train --on assistant --data tools.jsonl --as agent --max-minutes 10
    lamina train --resume last

    Data: OpenAI chat JSONL (with tools), prompt/completion, Alpaca, ShareGPT, plain text, CSV,
    parquet, hf:org/name; over an image base a folder or zip of captioned images. Some rows are
    held out by content hash and become the layer's exam. Ctrl-C saves the run and says how to go
    on. With --workers, processes on a Ray cluster whose machines share the store take every step
    together; one that dies costs the steps since the last checkpoint. Where nothing changed since
    the last time (rows, options, stack beneath, lamina itself) the layer that is there is kept, in
    a second.
    """
    if ray is not None and workers is None:
        raise UsageError("--ray needs --workers", hint="say how many: --workers 4")
    overrides = {
        "rank": rank,
        "ranks": module_ranks(module_rank),
        "lr": lr,
        "epochs": epochs,
        "steps": steps,
        "max_minutes": max_minutes,
        "targets": target,
        "scaling": scaling,
        "batch_tokens": batch_tokens,
        "max_length": max_length,
        "overlong": overlong,
        "held_out": held_out,
        "rehearsal": rehearsal,
        "protect": protect,
        "diffusion": of_images(min_snr, caption_dropout),
        "seed": seed,
        "exams": scorer,
    }
    rest = {
        "format": format,
        "skip_bad": skip_bad,
        "private": private,
        "rehearsal_set": rehearsal_set,
        "licence": licence,
        "author": author,
        "exam": exam,
        "memory": memory,
        "force": force,
        "again": again,
        "stream": stream,
    }
    store, reporter = environment.open_store(), Terminal()
    if resume is not None:
        refuse_beside_resume(
            {"data": data, "on": on, "as": name, "recipe": recipe, **overrides, **rest}
        )
        from lamina.flows import runs

        run = runs.to_resume(store, None if resume == "last" else resume)
        if accept_regression is not None:
            run.accept_regression(accept_regression)
    else:
        if data is None or on is None or name is None:
            needed = {"--data": data, "--on": on, "--as": name}
            missing = ", ".join(option for option, value in needed.items() if value is None)
            raise UsageError(f"missing {missing}", hint="see: lamina train --help")
        values = read_recipe(recipe, overrides)
        from lamina.flows import learn

        request = learn.Request(
            on=on,
            data=data,
            name=name,
            recipe=values,
            format=format,
            skip_bad=skip_bad,
            private=private,
            rehearsal_set=rehearsal_set,
            licence=licence,
            author=author or environment.author(),
            rates=environment.rates(),
            exam_files=exam or (),
            accept_regression=accept_regression,
            force=force,
            again=again,
            stream=stream,
            memory=memory_size(memory),
        )
        run = learn.prepare(store, request, reporter)
    show(finish(store, run, reporter, workers=workers, ray=ray), as_json=json)


def of_images(min_snr: float | None, dropped: float | None) -> dict[str, float] | None:
    """What --min-snr and --caption-dropout say; None where they are not given."""
    given = {"min_snr": min_snr, "dropped": dropped}
    return {key: value for key, value in given.items() if value is not None} or None


def module_ranks(given: list[str] | None) -> dict[str, int] | None:
    """What --module-rank says. Raises UsageError for all that is no LINEAR=N, or given twice."""
    if given is None:
        return None
    ranks: dict[str, int] = {}
    faults = []
    for text in given:
        name, _, rank = text.rpartition("=")
        if not (name and rank.isascii() and rank.isdigit()):
            faults.append(f"{text!r}: give a linear, an equals sign and a rank")
        elif name in ranks:
            faults.append(f"{name!r} is given twice")
        else:
            ranks[name] = int(rank)
    if faults:
        raise UsageError("--module-rank cannot be read", faults=faults)
    return ranks


def memory_size(text: str | None) -> int | None:
    """Bytes of --memory. Raises UsageError."""
    from lamina.core.sizes import parse_size

    return None if text is None else parse_size(text)


def refuse_beside_resume(options: dict[str, Any]) -> None:
    """A run goes on as it was started. Raises UsageError naming every other option given."""
    spelt = {
        "targets": "target",
        "exams": "scorer",
        "ranks": "module-rank",
        "diffusion": "min-snr",
    }
    given = [
        "--" + spelt.get(key, key).replace("_", "-")
        for key, value in options.items()
        if value is not None and value is not False
    ]
    if given:
        raise UsageError(
            f"--resume goes on with a run as it was started, without {', '.join(given)}",
            hint="start another run to change them",
        )


def finish(
    store: "Store",
    run: "Run",
    reporter: "Reporter",
    *,
    workers: int | None = None,
    ray: str | None = None,
) -> "Learned":
    """Train a run to its end; a signal stops it after a step, a second one at once."""
    from lamina.fleet.crew import Size
    from lamina.flows import learn

    crew = None if workers is None else Size(workers)
    with stop_on_signals() as should_stop:
        try:
            return learn.execute(
                store, run, reporter, should_stop, crew, environment.ray_address(ray)
            )
        except KeyboardInterrupt:
            reporter.say(f"stopped at once; go on with: lamina train --resume {run.id}")
            raise


def read_recipe(path: Path | None, overrides: dict[str, Any]) -> "Recipe":
    """A recipe file with options on top; every fault of both at once. Raises UsageError."""
    import tomllib

    from lamina.core.recipe import Recipe

    fields: dict[str, Any] = {}
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8")
            fields = json_module.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        except (OSError, ValueError, RecursionError) as error:
            raise UsageError(f"recipe {path} cannot be read: {error}") from None
        if not isinstance(fields, dict):
            raise UsageError(f"recipe {path} is no table of keys and values")
    fields |= {key: value for key, value in overrides.items() if value is not None}
    return Recipe.parse(fields, f"recipe {path}" if path else "the recipe")


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """First Ctrl-C or SIGTERM asks for a stop after the step; a second Ctrl-C stops at once."""
    asked: list[int] = []

    def ask(number: int, _frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        sys.stderr.write("\nstopping after this step (again to stop at once)\n")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def show(learned: "Learned", *, as_json: bool) -> None:
    """The end of a run, as JSON or for people."""
    cost, config = learned.cost, learned.config
    if as_json:
        print_json(
            {
                "layer": learned.layer.digest,
                "stack": learned.stack.digest,
                "name": str(learned.name) if learned.name else None,
                "metrics": learned.examination.to_json(),
                "cost": cost.model_dump(mode="json"),
            }
        )
        return
    minutes, smaller = cost.seconds / 60, cost.base_bytes / max(cost.layer_bytes, 1)
    print_text(learned.examination.render())
    print_text(
        f"{learned.name} · layer @{learned.layer.digest[7:19]} · {config.parameters:,} parameters, "
        f"{cost.layer_bytes / 1e6:.1f} MB ({smaller:.0f} times smaller than the base) · "
        f"{minutes:.1f} minutes, {cost.tokens_per_second:.0f} tokens/s\n"
        f"next: {learned.next_command}"
    )
    if learned.growth is not None and not learned.growth.gone:
        print_text(
            f"{learned.growth.known} of its rows were seen before: next time, "
            f"`lamina update {learned.growth.name} --data …` learns the new ones alone"
        )
