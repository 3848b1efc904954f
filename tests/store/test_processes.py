"""Several processes at once, from making the store to naming in it."""

import json
import subprocess
import sys
from pathlib import Path

from lamina.store.layout import Store
from tests.store.racer import ROUNDS

HERE = Path(__file__).parents[2]
RACERS = 3


def test_processes_naming_at_once(tmp_path):
    root = tmp_path / "store"  # made by whoever comes first
    racers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.store.racer", str(root), str(number)],
            cwd=HERE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(RACERS)
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    results = [json.loads(racer.communicate(timeout=60)[0]) for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * RACERS

    won = [turn for result in results for turn in result["won"]]
    assert sorted(won) == list(range(ROUNDS))  # exactly one winner for each prize
    versions = {
        version: digest
        for result in results
        for version, digest in zip(result["versions"], result["digests"], strict=True)
    }
    assert sorted(versions) == list(range(1, RACERS * ROUNDS + 1))

    store = Store.open(root, create=False)
    names = store.names()
    assert {f"v{v}": d for v, d in versions.items()} | {"latest": versions[RACERS * ROUNDS]} == {
        tag: found.digest for tag, found in names["shared"].items()
    }
    for result in results:
        for turn in result["won"]:
            assert names[f"prize-{turn}"]["latest"].digest == result["digests"][turn]
    assert store.verify().clean
    assert list(root.rglob(".tmp-*")) == []
