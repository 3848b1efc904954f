"""Write docs/cli.md from the program itself: `python docs/make_cli_reference.py`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from lamina.cli.app import app

TARGET = Path(__file__).with_name("cli.md")
INTRODUCTION = """\
# The command line

Made by `docs/make_cli_reference.py` from the program; change the program, not this file.

What a command is asked for goes to stdout, everything said to people (progress, notes, errors) to
stderr. With `--json` stdout is exactly one JSON document.

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | a check or the gate said no |
| 2 | bad usage or bad input; nothing was changed |
| 70 | a bug in lamina, with a traceback to report |
| 130 | interrupted; what was begun can be resumed |

| variable | meaning |
| --- | --- |
| `LAMINA_HOME` | the store's folder (default: the platform's data folder) |
| `LAMINA_AUTHOR` | author recorded in the layers that you train (default: none) |
"""


def reference() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    parts += [_command(words, command) for words, command in commands(get_command(app))]
    return "\n".join(parts)


def commands(group: Any, words: tuple[str, ...] = ("lamina",)) -> Iterator[tuple[str, Any]]:
    """Every command that does something, with the words that call it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*words, name))
        else:
            yield " ".join((*words, name)), command


def _command(words: str, command: Any) -> str:
    shown = [p for p in command.params if not getattr(p, "hidden", False) and p.name != "help"]
    arguments = [p for p in shown if p.param_type_name == "argument"]
    options = [p for p in shown if p.param_type_name == "option"]
    usage = [words, *("[OPTIONS]" if options else "",), *(_metavar(p) for p in arguments)]
    lines = [f"## {words}", "", f"`{' '.join(filter(None, usage))}`", "", *_help(command.help)]
    if arguments:
        lines += ["", "| argument | |", "| --- | --- |"]
        lines += [f"| `{_metavar(p)}` | {_cell(p.help)} |" for p in arguments]
    if options:
        lines += ["", "| option | |", "| --- | --- |"]
        lines += [f"| `{_option(p)}` | {_cell(p.help)}{_default(p)} |" for p in options]
    return "\n".join([*lines, ""])


def _help(text: str) -> list[str]:
    """The help as Markdown: a paragraph after \\b is a listing."""
    lines: list[str] = []
    listing = False
    for line in [*text.strip().splitlines(), ""]:
        if line == "\b":
            listing = True
            lines.append("```")
            continue
        if listing and not line:
            lines.append("```")
            listing = False
        lines.append(line)
    return lines[:-1] if lines and not lines[-1] else lines


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _option(parameter: Any) -> str:
    names = ", ".join(parameter.opts)
    return names if parameter.is_flag else f"{names} {_metavar(parameter)}"


def _default(parameter: Any) -> str:
    default = parameter.default
    if parameter.is_flag or default is None or callable(default) or default in ((), []):
        return " Required." if parameter.required else ""
    return f" Default: {default}."


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("\n", " ").strip()


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
