"""The guide's pages are run: every console block, command by command, in a small world.

A page's blocks belong together: they run in order in one copy of the world (`tests/guide_world.py`)
and in its folder of files. Lines that begin with `$ lamina` are typed; each must end with exit code
0, or with the code that a comment behind it gives (`# exit 1`). All other lines are what people
see, which is not compared.
"""

import re
import shlex
from pathlib import Path

import pytest

from tests import guide_world
from tests.cli.program import Program

pytestmark = pytest.mark.slow  # stacks are trained again and again

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "guide"
PAGES = sorted(GUIDE.glob("*.md"))
DOCUMENTED = (
    "base",
    "bisect",
    "conflicts",
    "cost",
    "export",
    "import",
    "log",
    "merge",
    "rebase",
    "refresh",
    "squash",
    "status",
    "train",
    "update",
)
"""Commands that must have a page, in which they are typed."""
_BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
_EXIT = re.compile(r"\s+#\s*exit (\d+)\s*$")
_COMMENT = re.compile(r"\s#.*$")


def typed(text):
    """(command line without `lamina`, exit code) of each command in a page's console blocks."""
    for block in _BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if not line.startswith("$ "):
                continue
            assert line.startswith("$ lamina "), f"only lamina can be run here: {line}"
            code = _EXIT.search(line)
            yield _COMMENT.sub("", line).removeprefix("$ lamina "), int(code[1]) if code else 0


@pytest.fixture(scope="session")
def made_world(tmp_path_factory):
    """The world that every page starts from. Not to be changed."""
    return guide_world.make(tmp_path_factory.mktemp("guide"))


@pytest.fixture
def world(made_world, tmp_path, monkeypatch):
    """A copy of it, with its files as the current folder."""
    copy = made_world.copy(tmp_path)
    monkeypatch.chdir(copy.files)
    return copy


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_pages_commands_do_what_it_says(page, world, monkeypatch, capsys):
    program = Program(world.home, monkeypatch, capsys)
    commands = list(typed(page.read_text(encoding="utf-8")))
    assert commands, "a page of the guide shows commands, in ```console blocks"
    for line, code in commands:
        result = program(*shlex.split(line))
        assert result.code == code, f"$ lamina {line}\n{result.out}{result.err}"


@pytest.mark.parametrize("command", DOCUMENTED)
def test_a_command_has_its_page(command):
    lines = typed((GUIDE / f"{command}.md").read_text(encoding="utf-8"))
    assert any(shlex.split(line)[0] == command for line, _ in lines)


def test_commands_are_found_with_their_exit_codes():
    page = """
    text, `lamina list`
```console
$ lamina list   # what there is
assistant
$ lamina train --on a \\
    --data b.jsonl  # exit 1
```
```
$ lamina elsewhere
```
"""
    assert [(line.split(), code) for line, code in typed(page)] == [
        (["list"], 0),
        (["train", "--on", "a", "--data", "b.jsonl"], 1),
    ]
    with pytest.raises(AssertionError, match="only lamina"):
        list(typed("```console\n$ rm -rf /\n```\n"))


def test_the_world_is_as_described(made_world):
    from lamina.core.manifests import LayerConfig
    from lamina.flows.rehearsal import FILE
    from lamina.stack.resolve import resolve
    from lamina.store.layout import Store

    store = Store.open(made_world.home, create=False)
    authors = {}
    for name in store.names():
        layers = resolve(store, name).layers
        authors[name] = [layer.config.author for layer in layers]
        for layer in layers:
            assert isinstance(layer.config, LayerConfig)
            assert layer.config.exams
            assert layer.manifest.blob(FILE) is not None
    assert authors == {
        "agent": ["ann", "bob"],
        "assistant": ["ann"],
        "clerk": ["ann", "dan"],
        "poet": ["ann", "eve"],
    }
    assert list(store.bases()) == [guide_world.BASE]
    assert {file.name for file in made_world.files.iterdir()} == {"new.jsonl", "questions.jsonl"}
