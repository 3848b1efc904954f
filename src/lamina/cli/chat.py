"""`lamina chat`: talk to a stack."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.display import Terminal
from lamina.cli.output import print_json
from lamina.core.errors import LaminaError

if TYPE_CHECKING:
    from lamina.flows.talk import Conversation

HELP = """\
/stack NAME   go on with another stack, keeping the conversation
/reset        forget the conversation
/history      show it
/help         this
/quit         leave (or Ctrl-D)"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("chat", no_args_is_help=True)(chat)


def chat(
    stack: options.Stack,
    once: Annotated[
        str | None, typer.Option("--once", metavar="TEXT", help="Answer this and stop.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 512,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    json: options.Json = False,
) -> None:
    """Talk to a stack; answers stream as they are made.

    \b
    lamina chat agent
    lamina chat agent --once "What can you do?"

    In the conversation, /stack NAME switches to another stack, /help lists the rest.
    """
    from lamina.flows.talk import Conversation

    conversation = Conversation(
        environment.open_store(),
        stack,
        system=system,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        max_tokens=max_tokens,
    )
    if once is not None:
        if json:
            print_json({"stack": conversation.digest, "answer": "".join(conversation.ask(once))})
        else:
            _stream(conversation, once)
        return
    Terminal().say(f"{stack} is listening; /help lists commands, Ctrl-D leaves")
    _loop(conversation)


def _loop(conversation: "Conversation") -> None:
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            sys.stdout.write("\n")
            return
        if line in ("/quit", "/exit"):
            return
        try:
            if line.startswith("/"):
                _command(conversation, line)
            elif line:
                _stream(conversation, line)
        except LaminaError as error:
            sys.stderr.write(error.render() + "\n")


def _command(conversation: "Conversation", line: str) -> None:
    word, _, rest = line.partition(" ")
    if word == "/stack" and rest:
        conversation.switch(rest.strip())
        sys.stderr.write(f"now {rest.strip()}\n")
    elif word == "/reset":
        conversation.reset()
    elif word == "/history":
        for message in conversation.history:
            sys.stdout.write(f"{message.role}: {message.content}\n")
    else:
        sys.stderr.write(HELP + "\n")


def _stream(conversation: "Conversation", text: str) -> None:
    try:
        for piece in conversation.ask(text):
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stdout.write(" …")
    sys.stdout.write("\n")
