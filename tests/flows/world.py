"""Data, requests and watchers for the flows' tests."""

import json
from pathlib import Path

from lamina.core.recipe import Recipe
from lamina.flows import learn
from lamina.store.layout import Store
from tests.stacks import BASE

QUICK = {
    "rank": 2,
    "lr": 2e-2,
    "steps": 4,
    "batch_tokens": 256,
    "max_length": 64,
    "held_out": 0.3,
    "eval_rows": 4,
    "eval_every": 2,
}
WORDS = ("red", "green", "blue", "yellow", "black", "white", "brown", "pink")


class Said:
    """A reporter that keeps everything."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.events: list[dict] = []

    def say(self, text: str) -> None:
        self.sentences.append(text)

    def event(self, event) -> None:
        self.events.append(dict(event))


def write_rows(path: Path, count: int = 40, *, word: str = "colour", answer=None) -> str:
    """Chat rows, one question each; `answer` gives the answer of a number."""
    answer = answer or (lambda n: f"the {word} is {WORDS[n % len(WORDS)]}")
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"which {word} has number {n}?"},
                {"role": "assistant", "content": answer(n)},
            ]
        }
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def gibberish(n: int) -> str:
    """An answer that nobody should learn."""
    return "".join(chr(33 + (n * 31 + i * i * 7) % 90) for i in range(30))


def request(data: str, name: str = "mine", on: str = BASE, **fields) -> learn.Request:
    """A quick request; keys of the recipe and of the request alike."""
    known = {key: fields.pop(key) for key in tuple(fields) if key in Recipe.model_fields}
    return learn.Request(on=on, data=[data], name=name, recipe=Recipe(**(QUICK | known)), **fields)


def learned(
    store: Store, folder: Path, name: str, on: str = BASE, word: str = "colour", **fields
) -> learn.Learned:
    """Train on rows about `word`."""
    data = write_rows(folder / f"{word}.jsonl", word=word)
    said = Said()
    run = learn.prepare(store, request(data, name, on, **fields), said)
    return learn.execute(store, run, said)


FIRST = {"name": "first", "steps": 12, "licence": "cc0-1.0", "author": "ann"}
SECOND = {"name": "second", "on": "first", "word": "animal"}


def harmful(folder: Path, name: str = "broken", on: str = "first", **fields) -> learn.Request:
    """A request whose layer makes what is beneath forget."""
    data = write_rows(folder / "garbage.jsonl", answer=gibberish)
    how = {"lr": 0.1, "steps": 20, "eval_every": 20, "patience": None} | fields
    return request(data, name, on, **how)
