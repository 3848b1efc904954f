"""`lamina chat`: talk to a stack."""

import contextlib
import importlib
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from lamina.cli import environment, options
from lamina.cli.display import Terminal
from lamina.cli.output import print_json
from lamina.core.errors import LaminaError, UsageError
from lamina.core.plain import shown

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
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System message.")] = None,
    temperature: Annotated[float, typer.Option(metavar="T", min=0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[
        float,
        typer.Option(metavar="P", min=0, max=1, help="Draw from this share of the probability."),
    ] = 1.0,
    max_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Longest answer, in tokens.")
    ] = 512,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Decides what is drawn.")] = 0,
    json: options.Json = False,
) -> None:
    """Talk to a stack; answers stream as they are made.

    \b
    lamina chat agent
    lamina chat agent --once "What can you do?"

    In the conversation, /stack NAME switches to another stack, /help lists the rest.
    """
    if json and once is None:
        raise UsageError("--json prints one answer", hint='give the question with --once "…"')

    from lamina.flows.talk import Conversation

    conversation = Conversation(
        environment.open_store(),
        stack,
        system=system,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        max_tokens=max_tokens,
        trust=environment.trust(),
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
    prompt = _prompt()
    while True:
        try:
            line = input(prompt).strip()
            line.encode()  # where the locale is no UTF-8 one, bad bytes come through as surrogates
        except (EOFError, KeyboardInterrupt):
            sys.stdout.write("\n" if prompt else "")
            return
        except UnicodeError:
            raise UsageError("the conversation is not UTF-8 text") from None
        if line in ("/quit", "/exit"):
            return
        try:
            if line.startswith("/"):
                _command(conversation, line)
            elif line:
                _stream(conversation, line)
        except LaminaError as error:
            sys.stderr.write(shown(error.render()) + "\n")


def _prompt() -> str:
    """What stands before a person's line; nothing when lines come through a pipe."""
    if not sys.stdin.isatty():
        return ""
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # gives input() its line editing and history
    return "> "


def _command(conversation: "Conversation", line: str) -> None:
    word, _, rest = line.partition(" ")
    if word == "/stack" and rest.strip():
        conversation.switch(rest.strip())
        sys.stderr.write(f"now {rest.strip()}\n")
    elif word == "/stack":
        sys.stderr.write("which? /stack NAME\n")
    elif word == "/reset":
        conversation.reset()
    elif word == "/history":
        for message in conversation.history:
            sys.stdout.write(_safe(f"{message.role}: {message.content}") + "\n")
    else:
        if word != "/help":
            sys.stderr.write(f"unknown: {word}\n")
        sys.stderr.write(HELP + "\n")


def _stream(conversation: "Conversation", text: str) -> None:
    try:
        for piece in conversation.ask(text):
            sys.stdout.write(_safe(piece))
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stdout.write(" …")
    sys.stdout.write("\n")


def _safe(text: str) -> str:
    """What a model writes is not for a terminal to obey; a file or a pipe gets it as it is."""
    return shown(text) if sys.stdout.isatty() else text
