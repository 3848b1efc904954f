"""The Python API: the same verbs, the same store, the same refusals."""

import pytest

import lamina
from lamina.core.errors import UnknownNameError, UsageError
from tests.made import write_rows


class Heard:
    """A reporter that keeps what it hears."""

    def __init__(self):
        self.said, self.events = [], []

    def say(self, text):
        self.said.append(text)

    def event(self, event):
        self.events.append(event["event"])


OPTIONS = {"rank": 2, "steps": 2, "max_length": 64, "exams": ("loss",)}


@pytest.fixture
def home(program):
    """A store to change, with stacks `sums` and `times`."""
    return program.home


def test_public_names_are_all_there_and_no_others():
    for name in lamina.__all__:
        assert getattr(lamina, name) is not None
    with pytest.raises(AttributeError, match="pul"):
        _ = lamina.pul


def test_train_returns_the_new_stack_and_leaves_the_old(home, rows):
    heard = Heard()
    base = lamina.load("pico", home=home, reporter=heard)
    before = base.digest
    stack = base.train(rows, name="fresh", **OPTIONS)
    assert stack.name == "fresh:v1"
    assert base.digest == before != stack.digest
    assert lamina.load("fresh", home=home).digest == stack.digest
    assert "step" in heard.events
    assert any("rows (" in text for text in heard.said)
    assert "fresh:v1" in repr(stack)


def test_a_stack_stays_what_it_was_when_its_name_moves(home, more_rows):
    sums = lamina.load("sums", home=home)
    answer = sums.chat("what is 1 plus 2?", max_tokens=6)
    sums.train([more_rows], name="sums", accept_regression="it is a test", **OPTIONS)
    assert lamina.load("sums", home=home).digest != sums.digest
    assert sums.chat("what is 1 plus 2?", max_tokens=6) == answer
    assert sums.show()["stack"] == sums.digest
    assert sums.exam().stack == sums.digest


def test_a_recipe_and_options_go_together(home, rows):
    recipe = lamina.Recipe(steps=2, max_length=64, exams=("loss",))
    stack = lamina.load("pico", home=home).train(rows, name="fresh", recipe=recipe, rank=3)
    (layer,) = stack.show()["layers"]
    assert (layer["rank"], layer["recipe"]["steps"]) == (3, 2)


@pytest.mark.parametrize("option", [{"rnak": 3}, {"on": "x"}, {"lr": 7}, {"name_": "x"}])
def test_unknown_options_are_refused(made, rows, option):
    with pytest.raises(UsageError, match=next(iter(option))):
        lamina.load("pico", home=made).train(rows, name="fresh", **option)


def test_exam_gives_scores(made):
    found = lamina.load("times", home=made).exam(against="sums").to_json()
    assert [score["layer"] for score in found["scores"]] == ["sums", "times"]


def test_export_is_checked(home, tmp_path):
    pytest.importorskip("peft")
    found = lamina.load("times", home=home).export(tmp_path / "out", to="peft")
    assert found["parity"]["value"] <= found["parity"]["limit"]


def test_pull_and_load(home, pico):
    assert lamina.pull(str(pico), name="again", home=home).digest == lamina.load(
        "pico", home=home
    ).digest  # fmt: skip
    with pytest.raises(UnknownNameError, match="nobody"):
        lamina.load("nobody", home=home)


def test_the_store_is_the_command_lines_by_default(made, monkeypatch):
    monkeypatch.setenv("LAMINA_HOME", str(made))
    assert lamina.load("sums").digest == lamina.load("sums", home=made).digest


def test_a_stack_is_kept_current_from_python(home, rows, tmp_path):
    base = lamina.load("pico", home=home)
    lower = base.train(rows, name="lower", **OPTIONS)
    upper = lower.train(rows, name="upper", accept_regression="a test", **OPTIONS)
    fresh = write_rows(tmp_path / "fresh.jsonl", "minus", 40)
    newer = lower.update(fresh, accept_regression="a test", steps=2)
    assert newer.name == "lower:v2"
    assert newer.update(fresh).digest == newer.digest  # every row is known
    again = upper.refresh(keep=0, override="a test")
    assert again.name == "upper:v2"
    assert [layer["name"] for layer in again.show()["layers"]] == ["lower", "upper"]
    one = again.squash(name="one", override="a test")
    assert len(one.show()["layers"]) == 1
    moved = lamina.load("times", home=home).rebase(newer, name="moved", keep=0, override="a test")
    assert moved.name == "moved:v1"
    with pytest.raises(UsageError):
        newer.update(fresh, rank=8)
    side = base.train(fresh, name="side", **OPTIONS)
    both = lamina.merge([lower, side], name="both", override="a test")
    assert len(both.show()["layers"]) == 1


def test_propose_review_and_accept(home, made, tmp_path, monkeypatch):
    import shutil

    monkeypatch.setenv("LAMINA_CONFIG", str(tmp_path / "config"))
    theirs = shutil.copytree(made, tmp_path / "theirs", symlinks=True)
    rows = write_rows(tmp_path / "minus.jsonl", "minus", 20)
    minus = lamina.load("times", home=theirs).train(
        rows, name="minus", accept_regression="a test", **OPTIONS
    )
    place = minus.propose(tmp_path / "minus.oci.tar", onto="times")["place"]
    report = lamina.review(place, home=home)
    assert report.accepted, report.evidence.reasons
    accepted = lamina.accept(place, home=home, author="max")
    assert (accepted.name, accepted.digest) == ("times:v2", minus.digest)
