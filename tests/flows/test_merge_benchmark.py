"""The merge benchmark's own path, on a pico base and few rows."""

import json

from benchmarks import common, merge

from lamina.stack.combine.registry import METHODS
from tests.flows.world import write_rows
from tests.stacks import new_store


def test_quick(tmp_path, capsys, monkeypatch):
    store = new_store(tmp_path / "home", layers=1)
    for word, source in zip(("animal", "river"), merge.SOURCES.values(), strict=True):
        write_rows(tmp_path / source.file, 40, word=word)
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    given = ["--home", store.root, "--data", tmp_path, "--base", "pico", "--quick", "--keep"]
    merge.main(list(map(str, given)))
    (kept,) = (tmp_path / "results" / "merge.jsonl").read_text().splitlines()
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert row == json.loads(kept)
    assert (row["benchmark"], set(row["methods"])) == ("merge", set(METHODS))
    assert row["rows"] == dict.fromkeys(merge.SOURCES, merge.MOST_QUICK)
    assert set(row["alone"]) == {"pico (parent)", *merge.SOURCES}
    exams = {f"{name}/loss" for name in merge.SOURCES}
    for method, found in row["methods"].items():
        assert set(found["values"]) == set(found["kept"]) == exams
        assert (found["lost"] > 0) is (METHODS[method].result == "dense")
        assert found["seconds"] > 0
    assert -1 <= row["interference"]["cosine"] <= 1

    before = {name: tags["latest"].digest for name, tags in store.names().items()}
    merge.main([*map(str, given[:-1]), "--methods", "knots"])
    again = capsys.readouterr()
    assert again.err.count("in the store already") == 2
    assert {name: tags["latest"].digest for name, tags in store.names().items()} == before
    values = json.loads(again.out.splitlines()[-1])["methods"]["knots"]["values"]
    assert values == row["methods"]["knots"]["values"]
