"""Docs as tests: the CLI reference is the program's, and every command line shown parses."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from lamina.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`(lamina [^`]+)`")


def shown(text):
    """Command lines in a page: lines of listings that begin with lamina, and `lamina …` spans."""
    for block in _FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.strip().removeprefix("$ ")
            if line.startswith("lamina "):
                yield line
    yield from (" ".join(span.split()) for span in _SPAN.findall(_FENCE.sub("", text)))


def faults(line):
    """What the program would not understand; placeholders (NAME, …, <x>, [x]) stand for anything.

    `lamina log | show agent` shows several commands at once.
    """
    words = shlex.split(re.sub(r"\s#.*", "", line), posix=True)
    command, options = get_command(app), []
    rest = iter(words[1:])
    for word in rest:
        if word in ("|", ";", "&&"):
            following = list(rest)
            if following[:1] != ["lamina"]:
                following = ["lamina", *following]
            yield from faults(shlex.join(following))
            break
        if word.startswith("-") and len(word) > 1:
            options.append((command, word.strip("[]").partition("=")[0]))
        elif hasattr(command, "commands"):
            if word not in command.commands and not re.fullmatch(r"…|\.\.\.|[A-Z]+|<\w+>", word):
                yield f"no command {word!r}"
                return
            command = command.commands.get(word, command)
    for owner, option in options:
        known = {name for p in owner.params for name in (*p.opts, *p.secondary_opts)}
        if option not in known | {"--help", "-h"}:
            yield f"{owner.name} has no option {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_line_shown_parses(page):
    found = {line: list(faults(line)) for line in shown(page.read_text(encoding="utf-8"))}
    assert {line: said for line, said in found.items() if said} == {}


def test_the_pages_show_command_lines():
    lines = [line for page in PAGES for line in shown(page.read_text(encoding="utf-8"))]
    assert len(lines) > 20
    assert any(line.startswith("lamina train --on") for line in lines)


def test_help_shows_command_lines_that_parse():
    text = reference_maker().reference()
    for line in shown(text):
        if "[OPTIONS]" not in line:
            assert list(faults(line)) == [], line


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("lamina trian --on x", "no command 'trian'"),
        ("lamina train --onn x", "train has no option --onn"),
        ("lamina base pul x", "no command 'pul'"),
        ("lamina log | shwo x", "no command 'shwo'"),
        ("lamina list --json | lamina lst", "no command 'lst'"),
    ],
)
def test_the_checker_sees_mistakes(line, said):
    assert list(faults(line)) == [said]


@pytest.mark.parametrize(
    "line",
    ["lamina train …", "lamina base pull NAME  # any name", "lamina COMMAND", "lamina log | list"],
)
def test_the_checker_lets_placeholders_through(line):
    assert list(faults(line)) == []


def reference_maker():
    path = ROOT / "docs" / "make_cli_reference.py"
    spec = importlib.util.spec_from_file_location("make_cli_reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_cli_reference_is_up_to_date():
    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == reference_maker().reference(), "run: python docs/make_cli_reference.py"


def test_every_command_and_option_says_what_it_does():
    for words, command in reference_maker().commands(get_command(app)):
        assert command.help, words
        assert [p.name for p in command.params if not getattr(p, "help", None)] == [], words


def test_the_numbers_in_tables_are_those_of_the_newest_rows():
    spec = importlib.util.spec_from_file_location("make_tables", ROOT / "docs" / "make_tables.py")
    make_tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_tables)
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in make_tables.FILES]
    for text in texts:
        assert make_tables.rewritten(text) == text, "run: python docs/make_tables.py"
    for name in make_tables.TABLES:
        assert sum(f"<!-- table {name} -->" in text for text in texts) == 1
