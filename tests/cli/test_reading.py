"""Commands that read: one JSON document on stdout, people's text elsewhere."""

import json

import pytest


def test_list_names_what_there_is(shared):
    found = shared("list", "--json").done().json
    assert [b["name"] for b in found["bases"]] == ["pico"]
    stacks = {s["name"]: s["layers"] for s in found["stacks"]}
    assert stacks == {"sums": ["sums"], "times": ["sums", "times"]}
    assert "sums > times" in shared("list").done().out


def test_an_empty_store_says_how_to_start(empty):
    assert "lamina base pull" in empty("list").done().out
    assert empty("list", "--json").done().json == {"bases": [], "stacks": []}
    assert empty("runs", "--json").done().json == {"runs": []}
    assert empty("log", "--json").done().json == {"moves": []}
    assert empty("base", "list", "--json").done().json == {"bases": []}


def test_show_tells_everything_about_a_stack(shared):
    found = shared("show", "times", "--json").done().json
    assert [layer["name"] for layer in found["layers"]] == ["sums", "times"]
    assert found["layers"][0]["data"]["files"][0]["name"].endswith("sums.jsonl")
    assert found["layers"][1]["parents"][0]["layer"] == found["layers"][0]["layer"]
    text = shared("show", "times").done().out
    assert text.index("layer times") < text.index("layer sums")  # as a stack lies
    layer = found["layers"][0]["layer"]
    assert shared("show", f"@{layer[7:19]}", "--json").done().json["kind"] == "layer"
    assert shared("show", "pico", "--json").done().json["kind"] == "base"


def test_show_prints_the_rows_that_travel(shared):
    lines = shared("show", "times", "--rehearsal").done().out.splitlines()
    assert lines
    for line in lines:
        assert [m["role"] for m in json.loads(line)["messages"]] == ["user", "assistant"]
    shared("show", "pico", "--rehearsal").refused("bare base")


def test_base_list_and_show_agree(shared):
    (listed,) = shared("base", "list", "--json").done().json["bases"]
    shown = shared("base", "show", "pico", "--json").done().json
    assert listed["identity"] == shown["identity"]
    assert "im_start" in shown["chat_template"]
    assert "pico" in shared("base", "list").done().out
    assert "model.safetensors" in shared("base", "show", "pico").done().out


def test_log_is_newest_first_and_keeps_overrides(shared):
    moves = shared("log", "--json").done().json["moves"]
    assert {m["name"] for m in moves} == {"sums", "times"}
    assert shared("log", "sums", "--json").done().json["moves"] == [
        m for m in moves if m["name"] == "sums"
    ]
    assert "times:v1" in shared("log", "times").done().out


def test_exam_json_has_its_documented_shape(shared):
    result = shared("exam", "times", "--json").done()
    found = result.json
    assert found["stack"].startswith("sha256:")
    assert [s["layer"] for s in found["scores"]] == ["sums", "times"]
    for score in found["scores"]:
        assert set(score) == {"exam", "layer", "metric", "value", "ci", "n"}
        low, high = score["ci"]
        assert low <= score["value"] <= high
        assert score["n"] > 0


def test_diff_asks_both_stacks_the_same(shared):
    found = shared("diff", "sums", "times", "--prompt", "what is 1?", "--json").done().json
    (answer,) = found["answers"]
    assert answer["prompt"] == "what is 1?"
    assert answer["same"] == (answer["a"] == answer["b"])
    assert found["b"]["layers"][:1] == found["a"]["layers"]


def test_runs_lists_finished_ones_only_when_asked(shared):
    assert shared("runs", "--json").done().json == {"runs": []}
    runs = shared("runs", "--all", "--json").done().json["runs"]
    assert [run["state"] for run in runs] == ["sums:v1", "times:v1"]
    assert "no run is waiting" in shared("runs").done().out


def test_verify_finds_a_sound_store_sound(shared):
    assert shared("verify", "--json").done().json["faults"] == []
    assert "all sound" in shared("verify").done().out


def test_output_survives_a_terminal_that_knows_only_ascii(shared):
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    result = shared.spawn("show", "sums", "--json", env=ascii_only).done()
    assert result.out.isascii()
    assert result.json["layers"][0]["author"] == "Zoë"
    assert "by Zo\\xeb" in shared.spawn("show", "sums", env=ascii_only).done().out


@pytest.mark.parametrize("command", ["list", "log", "runs", "verify"])
def test_a_closed_pipe_is_no_traceback(shared, command):
    child = shared.child(command, "--json")
    child.stdout.close()
    child.stdout = None
    _, err = child.communicate(timeout=60)
    assert "Traceback" not in err
    assert child.returncode != 0
