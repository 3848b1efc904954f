"""The same command again: kept in a moment, by what is on record alone."""

import json
import subprocess
import sys

from tests.cli.program import environment
from tests.made import QUICK

WITHOUT_TORCH = """
import sys
from lamina.cli.app import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    heavy = {"torch", "transformers", "tokenizers"} & set(sys.modules)
    sys.stderr.write(f"loaded: {sorted(heavy)}")
    sys.exit(end.code)
"""


def train(rows, *options):
    return ("train", "--on", "pico", "--data", rows, "--as", "fresh", *QUICK, "--json", *options)


def test_nothing_changed_prints_what_training_printed(program, rows):
    first = program(*train(rows)).done()
    assert "nothing changed" not in first.err
    second = program(*train(rows)).done()
    assert second.json == first.json
    assert f"nothing changed since layer @{first.json['layer'][7:19]}: kept" in second.err
    assert "step" not in second.err
    people = program(*(option for option in train(rows) if option != "--json")).done()
    assert "next: lamina chat fresh" in people.out
    third = program(*train(rows, "--again")).done()
    assert third.json["layer"] == first.json["layer"]
    assert third.json["cost"]["created"] >= first.json["cost"]["created"]
    assert "nothing changed" not in third.err


def test_nothing_heavy_is_loaded(program, rows):
    first = program(*train(rows)).done()
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *map(str, train(rows))],
        env=environment(program.home),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == first.json
    assert done.stderr.endswith("loaded: []")


def test_a_recipe_file_counts_by_what_it_says(program, rows, tmp_path):
    file = tmp_path / "r.toml"
    file.write_text("steps = 2\n")
    first = program(*train(rows, "--recipe", file)).done()
    file.write_text("# a remark\nsteps = 2\n")
    assert "nothing changed" in program(*train(rows, "--recipe", file)).done().err
    assert "nothing changed" in program(*train(rows, "--steps", 2)).done().err
    file.write_text("steps = 3\n")
    second = program(*train(rows, "--recipe", file)).done()
    assert "nothing changed" not in second.err
    assert second.json["layer"] != first.json["layer"]


def test_another_author_is_another_layer(program, rows):
    first = program(*train(rows, "--steps", 1)).done()
    second = program(*train(rows, "--steps", 1), LAMINA_AUTHOR="grace").done()
    assert second.json["layer"] != first.json["layer"]


def test_again_does_not_go_with_resume(program):
    program("train", "--resume", "last", "--again").refused("without --again")


def test_a_grown_file_is_offered_an_update(program, rows, tmp_path):
    lines = rows.read_text(encoding="utf-8").splitlines(keepends=True)
    file = tmp_path / "grows.jsonl"
    file.write_text("".join(lines[:60]), encoding="utf-8")
    program(*train(file)).done()
    file.write_text("".join(lines), encoding="utf-8")
    done = program(*(o for o in train(file, "--accept-regression", "x") if o != "--json")).done()
    assert f"lamina update fresh --data {file}" in done.err
    assert "60 of its rows were seen before" in done.out
    assert "`lamina update fresh --data …`" in done.out
