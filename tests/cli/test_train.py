"""Training through the program: what it prints, how it stops, how it goes on."""

import json
import shutil
import signal
import time

import pytest

from tests.cli import several
from tests.cli.program import wait
from tests.made import QUICK


def train(on, data, name, *options):
    return ("train", "--on", on, "--data", data, "--as", name, *QUICK, *options)


def test_train_json_has_its_documented_shape(program, more_rows):
    result = program(*train("sums", more_rows, "fresh", "--accept-regression", "x", "--json"))
    found = result.done().json
    assert set(found) == {"layer", "stack", "name", "metrics", "cost"}
    assert found["name"] == "fresh:v1"
    assert found["cost"]["steps"] >= 1
    assert found["metrics"]["stack"] == found["stack"]
    assert program("show", "fresh", "--json").json["stack"] == found["stack"]
    assert "rows (" in result.err  # people's text


def test_people_get_a_summary_and_the_next_command(program, rows):
    assert "next: lamina chat fresh" in program(*train("pico", rows, "fresh")).done().out


def test_recipe_file_and_options_go_together(program, rows, tmp_path):
    (tmp_path / "r.toml").write_text('rank = 4\nsteps = 2\nmax_length = 64\ntargets = ["q_proj"]\n')
    options = ("--recipe", tmp_path / "r.toml", "--rank", 3, "--author", "ada", "--json")
    found = program("train", "--on", "pico", "--data", rows, "--as", "fresh", *options).done().json
    layer = program("show", found["layer"], "--json").json
    assert layer["rank"] == 3
    assert layer["recipe"]["steps"] == 2
    assert {name.rpartition(".")[2] for name in layer["modules"]} == {"q_proj"}
    assert layer["author"] == "ada"


def test_ranks_of_their_own(program, rows):
    options = ("--steps", 1, "--module-rank", "q_proj=1", "--module-rank", "mlp.up_proj=5")
    found = program(*train("pico", rows, "fresh", *options, "--json")).done().json
    layer = program("show", found["layer"], "--json").json
    assert layer["recipe"]["ranks"] == {"q_proj": 1, "mlp.up_proj": 5}
    wrong = ("q_proj", "k_proj=two", "=3", "v_proj=2", "v_proj=3")
    options = [each for one in wrong for each in ("--module-rank", one)]
    refused = program(*train("pico", rows, "other", *options))
    refused.refused("'q_proj'", "'k_proj=two'", "'=3'", "'v_proj' is given twice")
    program(*train("pico", rows, "other", "--module-rank", "q_prj=2")).refused("'q_prj'", "q_proj")
    both = ("--module-rank", "q_proj=2", "--scaling", "rslora")
    program(*train("pico", rows, "other", *both)).refused("another scale for each rank")


def test_the_author_comes_from_the_environment(program, rows):
    arguments = train("pico", rows, "fresh", "--steps", 1, "--json")
    found = program(*arguments, LAMINA_AUTHOR="grace").done().json
    assert program("show", found["layer"], "--json").json["author"] == "grace"


def test_private_exams_do_not_travel(program, rows):
    found = program(*train("pico", rows, "fresh", "--steps", 1, "--private", "--json")).done().json
    layer = program("show", found["layer"], "--json").json
    assert all(exam["private"] for exam in layer["exams"])
    assert program("exam", "fresh", "--json").done().json["scores"]


class TestGate:
    def ruin(self, program, rows, *options):
        """Train a layer that makes everything worse."""
        return program("train", "--on", "sums", "--data", rows, "--as", "sums", "--rank", 8,
                       "--lr", 1, "--steps", 12, "--max-length", 64, "--held-out", 0.0,
                       *options)  # fmt: skip

    def test_a_no_keeps_the_layer_and_not_the_name(self, program, more_rows):
        before = program("log", "--json").json
        result = self.ruin(program, more_rows, "--json").refused("worse", "--resume", code=1)
        assert result.out == ""
        assert program("log", "--json").json == before
        (run,) = program("runs", "--json").json["runs"]
        assert run["state"] == "trained, not named"
        program("gc", "--grace", 0).done()  # what waits for a word is not swept
        program("train", "--resume", "last").refused(code=1)
        hint = f"train --resume {run['run']} --accept-regression".split()
        named = program(*hint, "it is a test", "--json").done().json
        assert named["name"] == "sums:v2"
        move = program("log", "sums", "--json").json["moves"][0]
        assert (move["override"], move["passed"]) == ("it is a test", False)
        assert program("runs", "--json").json == {"runs": []}

    def test_tag_asks_the_gate_too(self, program, more_rows):
        self.ruin(program, more_rows).refused(code=1)
        stack = program("show", "times", "--json").json["stack"]
        layer = self.ruined_layer(program)
        program("tag", layer, "sums").refused("worse", code=1)
        named = program("tag", layer, "sums", "--accept-regression", "why not", "--json").done()
        assert named.json["name"] == "sums:v2"
        assert program("show", "times", "--json").json["stack"] == stack

    def ruined_layer(self, program):
        (path,) = [
            p for p in program.home.glob("runs/*/result.json") if '"name"' not in p.read_text()
        ]
        return json.loads(path.read_text())["layer"]


STEPS = ("--steps", 120, "--batch-tokens", 64, "--json")


@pytest.fixture(scope="module")
def whole(made, rows, tmp_path_factory):
    """The layer of an uninterrupted run."""
    home = shutil.copytree(made, tmp_path_factory.mktemp("whole") / "home", symlinks=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAMINA_HOME", str(home))
        code, out, err = several.run([str(each) for each in train("pico", rows, "long", *STEPS)])
    assert code == 0, err
    return json.loads(out)["layer"]


class TestResume:
    def started(self, program, rows):
        """A child that has done some steps and has many to go."""
        child = program.child(*train("pico", rows, "long", *STEPS))
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and child.poll() is None:
            for events in program.home.glob("runs/*-long-*/events.jsonl"):
                if events.read_text().count('"step"') >= 8:
                    return child
            time.sleep(0.005)
        pytest.fail(f"no step within a minute: {wait(child)}")

    @pytest.mark.slow
    def test_ctrl_c_saves_and_going_on_gives_the_same_layer(self, program, rows, whole):
        child = self.started(program, rows)
        child.send_signal(signal.SIGINT)
        result = wait(child).refused("nothing is lost", "lamina train --resume", code=130)
        assert result.out == ""
        (run,) = program("runs", "--json").json["runs"]
        assert 0 < run["step"] < 120
        assert run["state"] == "waiting"
        assert program("train", "--resume", "last", "--json").done().json["layer"] == whole

    @pytest.mark.slow
    def test_sigterm_saves_too(self, program, rows, whole):
        child = self.started(program, rows)
        child.terminate()
        wait(child).refused("nothing is lost", code=130)
        (run,) = program("runs", "--json").json["runs"]
        assert program("train", "--resume", run["run"], "--json").done().json["layer"] == whole

    def test_kill_minus_9_loses_nothing(self, program, rows, whole):
        child = self.started(program, rows)
        # a second process may not train the same run
        program("train", "--resume", "last").refused("another process")
        child.kill()
        assert wait(child).code == -signal.SIGKILL
        rows_before = rows.read_bytes()
        try:
            rows.write_text("changed since")  # a run keeps its own rows
            found = program("train", "--resume", "last", "--json").done().json
        finally:
            rows.write_bytes(rows_before)
        assert found["layer"] == whole
        assert program("verify").done().code == 0

    def test_a_finished_run_says_so(self, shared):
        (run, _) = shared("runs", "--all", "--json").json["runs"]
        shared("train", "--resume", run["run"]).refused("is finished", "sums:v1")
        shared("train", "--resume", "last").refused("no run is waiting")
        shared("train", "--resume", "nothing").refused("no run 'nothing'")

    @pytest.mark.parametrize(
        "options",
        [
            ("--rank", 3),
            ("--data", "x"),
            ("--as", "x"),
            ("--skip-bad",),
            ("--seed", 0),
            ("--target", "q_proj"),
            ("--module-rank", "q_proj=2"),
            ("--held-out", 0.0),
            ("--force",),
        ],
    )
    def test_other_options_beside_it_are_refused(self, shared, options):
        shared("train", "--resume", "last", *options).refused(options[0])

    @pytest.mark.slow
    def test_a_damaged_checkpoint_is_not_trained_on(self, program, rows):
        child = self.started(program, rows)
        child.send_signal(signal.SIGINT)
        wait(child)
        (state,) = program.home.glob("runs/*/state.safetensors")
        data = bytearray(state.read_bytes())
        data[-5] ^= 1
        state.write_bytes(data)
        program("train", "--resume", "last").refused("is damaged", str(state))


class TestReproduce:
    def test_a_layer_comes_out_the_same(self, program, rows):
        found = program("reproduce", "sums", "--json").done().json
        assert found["equal"] is True
        assert found["layer"] == found["again"]
        assert program("reproduce", "sums", "--data", rows).done().out.startswith("reproduced")
        assert program("runs", "--json").json == {"runs": []}

    def test_other_rows_are_refused(self, program, more_rows):
        program("reproduce", "sums", "--data", more_rows).refused("rows", "--data", code=1)

    def test_a_base_cannot_be_reproduced(self, shared):
        shared("reproduce", "pico").refused("is a base")
