"""The world of the guide's examples: a base, four trained stacks, and files to work with.

    smollm2-135m            a pico base under the real one's name
    └─ assistant            one layer, by ann
       ├─ agent             a layer over it, by bob
       ├─ poet              another, by eve
       └─ clerk             another, by dan

Each layer carries an exam and a rehearsal set. Beside them lie `new.jsonl` (rows to update
assistant with: some seen before, some new, and one with a new answer to an old question) and
`questions.jsonl` (questions of one's own).
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

BASE = "smollm2-135m"
RECIPE = {
    "rank": 2,
    "steps": 12,
    "batch_tokens": 256,
    "max_length": 64,
    "held_out": 0.3,
    "lr": 0.02,
    "rehearsal": 0.3,
    "exams": ("loss",),
}
COLOURS = ("red", "green", "blue", "white")


@dataclass(frozen=True)
class World:
    """A store, and the folder in which commands are typed."""

    home: Path
    files: Path

    def copy(self, root: Path) -> "World":
        """A world of one's own."""
        shutil.copytree(self.home, root / "home", symlinks=True)
        shutil.copytree(self.files, root / "files")
        return World(root / "home", root / "files")


def make(root: Path) -> World:
    """Make it in an empty folder, by the program's own verbs."""
    from lamina.api import pull
    from tests.pico import pico_base

    world, rows = World(root / "home", root / "files"), root / "rows"
    world.files.mkdir()
    rows.mkdir()
    base = pull(str(pico_base(root / "pico", hidden=32, layers=1)), name=BASE, home=world.home)
    why = "the guide's stacks are trained for a moment only"

    def over(stack, name, author, answers):
        file = write(rows / f"{name}.jsonl", answers)
        return stack.train(file, name=name, author=author, accept_regression=why, **RECIPE)

    assistant = over(base, "assistant", "ann", [colour(n) for n in range(40)])
    over(assistant, "agent", "bob", [(f"add {n} and 2", f"add({n}, 2)") for n in range(40)])
    over(assistant, "poet", "eve", [(f"rhyme on {n}", f"{n}, {n}, then") for n in range(40)])
    over(assistant, "clerk", "dan", [(f"file number {n}", f"shelf {n % 5}") for n in range(40)])
    write(world.files / "new.jsonl", new_rows())
    write(world.files / "questions.jsonl", [colour(n) for n in range(60, 72)])
    return world


def colour(number: int, answer: str | None = None) -> tuple[str, str]:
    """A question of assistant's and its answer."""
    return f"which colour has number {number}?", answer or COLOURS[number % len(COLOURS)]


def new_rows() -> list[tuple[str, str]]:
    """Eight rows seen before, an old question answered anew, and twenty new ones."""
    seen = [colour(number) for number in range(8)]
    return [*seen, colour(9, "violet"), *(colour(number) for number in range(40, 60))]


def write(path: Path, answers: list[tuple[str, str]]) -> Path:
    """Chat rows, one question and answer each."""
    lines = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": answer},
                ]
            }
        )
        for question, answer in answers
    ]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path
