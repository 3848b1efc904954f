"""`lamina arena`: small against large, on the same questions."""

from typing import Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.display import Terminal
from lamina.cli.output import print_json, print_text

KEY_VARIABLE = "OPENAI_API_KEY"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("arena", no_args_is_help=True)(arena)


def arena(
    stack: options.Stack,
    against: Annotated[
        str,
        typer.Option(
            "--against", metavar="URL|STACK", help="An OpenAI-compatible endpoint, or a stack."
        ),
    ],
    exam: Annotated[
        str | None,
        typer.Option(
            metavar="EXAM|FILE",
            help="One exam that the stack carries, or questions of your own. [default: all that "
            "it carries]",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which of the endpoint's models.")
    ] = None,
    key_variable: Annotated[
        str,
        typer.Option(metavar="VARIABLE", help="Environment variable with the endpoint's key."),
    ] = KEY_VARIABLE,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Questions of each exam, at most.")
    ] = None,
    at_once: Annotated[
        int, typer.Option(min=1, max=64, metavar="N", help="Questions under way at a time.")
    ] = 1,
    price_in: Annotated[
        float | None,
        typer.Option(min=0, metavar="PRICE", help="Of a million tokens sent to the endpoint."),
    ] = None,
    price_out: Annotated[
        float | None,
        typer.Option(min=0, metavar="PRICE", help="Of a million tokens that it answers."),
    ] = None,
    price_hour: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="PRICE",
            help="Of an hour of this machine. [default: what hardware.toml says of it]",
            show_default=False,
        ),
    ] = None,
    send_private: Annotated[
        bool,
        typer.Option("--send-private", help="Send withheld questions to another machine too."),
    ] = False,
    json: options.Json = False,
) -> None:
    """Put the same questions to a stack and to a rival: quality, seconds, cost.

    \b
    lamina arena agent --against agent:v1
    lamina arena agent --against https://api.openai.com/v1 --model gpt-4o-mini \\
        --price-in 0.15 --price-out 0.60 --price-hour 0.10
    lamina arena agent --against http://127.0.0.1:11434/v1 --model llama3.2 --exam questions.jsonl

    Accuracy with 95% intervals, tested in pairs; the time from asking to the last token, one
    question at a time; what a thousand answers cost at your prices. The questions are sent to the
    endpoint and nowhere else; exams whose questions are withheld are not, unless you say so.
    """
    from lamina.flows.arena import Match, Prices
    from lamina.flows.arena import arena as run
    from lamina.plan.hardware import HOUR, THIS

    if price_hour is None:
        price_hour = environment.hardware().money(THIS, HOUR)
    outcome = run(
        environment.open_store(),
        stack,
        against,
        Match(
            exam=exam,
            limit=limit,
            at_once=at_once,
            send_private=send_private,
            prices=Prices(price_hour, price_in, price_out),
        ),
        Terminal(),
        model=model,
        key=environment.secret(key_variable),
    )
    if json:
        print_json(outcome.to_json())
    else:
        print_text(outcome.render())
