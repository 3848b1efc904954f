"""Running the program: in this process for speed, or as a child for what only a process shows."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import pytest

from lamina.cli.app import main

PROGRAM = (sys.executable, "-c", "from lamina.cli.app import main; main()")
SECONDS = 120
"""Longest a child may take."""


@dataclass(frozen=True)
class Result:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        """stdout as the one JSON document that it must be."""
        return json.loads(self.out)

    def refused(self, *texts, code=2):
        """Check for a refusal for people: the exit code, each text on stderr, no traceback."""
        assert self.code == code, self
        assert "Traceback" not in self.err, self.err
        for text in texts:
            assert text in self.err, self.err
        return self

    def done(self):
        """Check for success."""
        assert self.code == 0, self
        return self


class Program:
    """The program with one store and one config folder, which the environment alone names."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
        self.home, self._monkeypatch, self._capsys = home, monkeypatch, capsys

    def __call__(self, *arguments, stdin: TextIO | None = None, **variables: str) -> Result:
        """Run a command in this process, with these variables in the environment."""
        with self._monkeypatch.context() as patch:
            patch.setenv("LAMINA_HOME", str(self.home))
            patch.setenv("LAMINA_CONFIG", str(config_of(self.home)))
            patch.delenv("LAMINA_AUTHOR", raising=False)
            for name, value in variables.items():
                patch.setenv(name, value)
            if stdin is not None:
                patch.setattr("sys.stdin", stdin)
            self._capsys.readouterr()
            with pytest.raises(SystemExit) as exit_:
                main(list(map(str, arguments)))
            out, err = self._capsys.readouterr()
        return Result(exit_.value.code or 0, out, err)

    def child(self, *arguments, **options) -> subprocess.Popen:
        """Start a command in its own process."""
        return start(self.home, *arguments, **options)

    def spawn(self, *arguments, **options) -> Result:
        """Run a command in its own process."""
        return wait(self.child(*arguments, **options))


def environment(home: Path, **more: str) -> dict[str, str]:
    """A child's environment."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("LAMINA_")}
    return {**kept, **places(home), "OMP_NUM_THREADS": "1", **more}


def places(home: Path) -> dict[str, str]:
    return {"LAMINA_HOME": str(home), "LAMINA_CONFIG": str(config_of(home))}


def config_of(home: Path) -> Path:
    """Where this store's user keeps keys: never where whoever runs the tests does."""
    return home.parent / f"{home.name}-config"


def start(home: Path, *arguments, env=None, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [*PROGRAM, *map(str, arguments)],
        env=environment(home, **(env or {})),
        stdin=options.pop("stdin", subprocess.DEVNULL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        **options,
    )


def wait(child: subprocess.Popen) -> Result:
    out, err = child.communicate(timeout=SECONDS)
    return Result(child.returncode, out, err)
