"""The house's shape, checked: imports, file sizes, first lines, and who may read what."""

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "lamina"
FILES = sorted(SOURCE.rglob("*.py"))
MOST_LINES = 450
HEAVY = {"torch", "transformers", "scipy", "numpy", "safetensors", "huggingface_hub", "tokenizers"}
NAMES = [str(path.relative_to(SOURCE)) for path in FILES]


@pytest.fixture(params=FILES, ids=NAMES)
def file(request):
    return request.param


@cache
def tree(file):
    return ast.parse(file.read_text(encoding="utf-8"))


def test_import_contracts_hold():
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_files_are_short_and_say_what_they_are(file):
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_LINES
    said = ast.get_docstring(tree(file))
    assert said, "no docstring"
    assert len(said.splitlines()[0]) > 10
    assert lines[0].startswith(('"""', 'r"""')), "the docstring is not the first line"


def test_room_inits_hold_no_code(file):
    if file.name == "__init__.py" and file.parent != SOURCE:
        assert len(tree(file).body) == 1


def test_only_the_cli_reads_the_environment(file):
    if file in (SOURCE / "cli" / "environment.py", SOURCE / "core" / "libraries.py"):
        return  # the second tells libraries what they take from there alone
    for node in ast.walk(tree(file)):
        name = getattr(node, "attr", getattr(node, "name", getattr(node, "id", None)))
        assert name not in {"environ", "getenv", "environb", "putenv", "expandvars"}, node.lineno


def test_what_tells_libraries_reads_nothing_of_the_environment():
    """Nothing but whether a name is set."""
    used = set()
    for node in ast.walk(tree(SOURCE / "core" / "libraries.py")):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "os.environ":
            used.add(node.attr)
        assert not (isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ")
    assert used == {"setdefault", "update", "pop"}


def test_nothing_below_the_cli_prints_or_exits(file):
    if file.parent == SOURCE / "cli":
        return
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"print", "input", "exit", "quit", "sys.exit"}, node.lineno


def test_no_pickle_is_ever_opened(file):
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = {a.name for a in node.names} | {getattr(node, "module", None)}
            assert not modules & {"pickle", "dill", "joblib", "marshal", "shelve"}, node.lineno
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) != "torch.load", node.lineno


RUN = "from lamina.cli.app import main; main({arguments})"
CHEAP = {
    "import lamina": "import lamina",
    "import app": "import lamina.cli.app",
    "import api": "import lamina.api",
    **{
        " ".join(words): RUN.format(arguments=list(words))
        for words in (
            ("--help",),
            ("--version",),
            ("train", "--help"),
            ("trian",),
            ("list",),
            ("list", "--json"),
            ("log",),
            ("show", "nothing"),
            ("runs",),
            ("verify",),
            ("gc",),
            ("base", "list"),
            ("access", "list"),
            ("access", "add", "ann"),
            ("train", "--rank", "3"),
        )
    },
}
PROBE = """
import atexit, json, sys
atexit.register(lambda: print("\\n" + json.dumps(sorted(sys.modules))))
"""


def loaded(code, home):
    """Modules loaded at the end of a child that runs `code`."""
    child = subprocess.run(
        [sys.executable, "-c", PROBE + code],
        capture_output=True,
        text=True,
        env={"LAMINA_HOME": str(home), "PATH": ""},
        timeout=60,
    )
    assert "Traceback" not in child.stderr, child.stderr
    return set(json.loads(child.stdout.splitlines()[-1]))


@pytest.mark.parametrize("what", CHEAP)
def test_cheap_commands_load_nothing_heavy(what, tmp_path):
    assert loaded(CHEAP[what], tmp_path / "home") & HEAVY == set()


def test_showing_a_real_stack_loads_nothing_heavy(made):
    for words in (["show", "times"], ["log", "times"], ["list"], ["runs", "--all"]):
        assert loaded(RUN.format(arguments=words), made) & HEAVY == set()


def test_help_and_import_load_no_pydantic(tmp_path):
    for what in ("import lamina", "--help"):
        assert loaded(CHEAP[what], tmp_path / "home") & {"pydantic", "rich", "filelock"} == set()


def test_the_probe_sees_what_is_heavy(tmp_path):
    assert loaded("import numpy", tmp_path) & HEAVY == {"numpy"}
