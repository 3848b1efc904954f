"""A run that is told how much memory it may take."""

import pytest

from lamina.core import machine
from lamina.core.errors import TrainInterrupted, UsageError
from lamina.core.recipe import Recipe
from lamina.flows import fitting, job, learn, runs, update
from lamina.flows.reproduce import reproduce
from lamina.lowrank import codec
from lamina.stack.resolve import resolve
from tests.flows.world import Said, request, write_rows
from tests.stacks import new_store
from tests.train.tiny import stop_after

TRAINED_ON = {"batch_tokens": 1024, "steps": 3}


@pytest.fixture(autouse=True)
def _nothing_else_in_memory(monkeypatch):
    """The prediction of what is trained alone, so that it is the same at every call."""
    monkeypatch.setattr(machine, "resident", lambda: 0)


@pytest.fixture
def store(tmp_path):
    """A store with a base of four layers, so that keeping one set is less than keeping all."""
    return new_store(tmp_path / "store", layers=4)


def said_of(store, what):
    """What is said of memory before a run, and the run as it is settled."""
    said = Said()
    run = learn.prepare(store, what, said)
    spec = run.spec
    beneath = resolve(store, what.on)
    rows = job.rows_of(store, run, spec, job.base_format(store, beneath), beneath)
    return run, fitting.fit(store, run, spec, beneath, rows, said).spec, said


def factors_of(store, done):
    """Digest of a layer's weights."""
    return store.manifest(done.layer.digest).blob(codec.WEIGHTS_FILE).digest


def predicted(said):
    (event,) = [e for e in said.events if e["event"] == "memory"]
    return event["predicted"]


@pytest.fixture
def needs(store, tmp_path, monkeypatch):
    """A request for a given memory; what it takes as it is, and in the smallest passes.

    What the process holds otherwise moves while tests run, by more than a byte.
    """
    now = machine.resident()
    monkeypatch.setattr(machine, "resident", lambda: now)
    data = write_rows(tmp_path / "colour.jsonl")

    def asking(memory=None, **fields):
        return request(data, "fitted", memory=memory, **(TRAINED_ON | fields))

    whole = predicted(said_of(store, asking())[2])
    return asking, whole, predicted(said_of(store, asking(pass_tokens=32))[2])


def test_it_is_said_before_anything_is_loaded(store, needs):
    asking, whole, small = needs
    assert small < whole
    run, spec, said = said_of(store, asking())
    assert spec == run.spec
    assert "about" in said.sentences[-1]
    assert "free" in said.sentences[-1]


def test_what_does_not_fit_is_taken_in_passes_and_reproduced(store, needs, tmp_path):
    asking, whole, _ = needs
    said = Said()
    run = learn.prepare(store, asking(whole - 1), said)
    done = learn.execute(store, run, said)
    recipe = done.config.recipe
    assert recipe.pass_tokens == 512
    assert not recipe.checkpointing
    assert predicted(said) < whole
    (line,) = [s for s in said.sentences if "memory" in s]
    assert "given" in line
    assert "passes of 512 tokens" in line
    assert reproduce(store, "fitted", (), Said(), lambda: False).equal
    steps = [e for e in said.events if e["event"] == "step"]
    assert len(steps) == 3
    assert max(e["tokens"] for e in steps) > 512  # a step is what it was


def test_computing_again_is_the_last_resort(store, needs):
    asking, *_ = needs
    quiet = {"held_out": 0.0}  # without an exam, training is what takes the most
    small = predicted(said_of(store, asking(pass_tokens=32, **quiet))[2])
    _, spec, _ = said_of(store, asking(small, **quiet))
    assert not spec.recipe.checkpointing
    said = Said()
    done = learn.execute(store, learn.prepare(store, asking(small - 1, **quiet), said), said)
    assert done.config.recipe.checkpointing
    assert any("computed again" in s for s in said.sentences)
    assert reproduce(store, "fitted", (), Said(), lambda: False).equal


def test_what_was_asked_for_is_kept(store, needs):
    asking, *_ = needs
    _, spec, _ = said_of(store, asking(pass_tokens=48, checkpointing=True))
    assert (spec.recipe.pass_tokens, spec.recipe.checkpointing) == (48, True)


def test_the_machines_memory_is_the_limit_too(store, needs, monkeypatch):
    asking, whole, _ = needs
    monkeypatch.setattr(machine, "free", lambda: whole - 1)
    _, spec, _ = said_of(store, asking(10**12))
    assert spec.recipe.pass_tokens == 512
    monkeypatch.setattr(machine, "free", lambda: 1000)
    with pytest.raises(UsageError, match="is free"):
        said_of(store, asking())


def test_where_nobody_says_what_is_free_everything_fits(store, needs, monkeypatch):
    asking, *_ = needs
    monkeypatch.setattr(machine, "free", lambda: None)
    _, spec, said = said_of(store, asking())
    assert spec.recipe.pass_tokens is None
    assert "free" not in said.sentences[-1]


def test_nothing_fits(store, needs):
    asking, _, small = needs
    said = Said()
    run = learn.prepare(store, asking(small // 2), said)
    with pytest.raises(UsageError, match=r"at least .* given") as caught:
        learn.execute(store, run, said)
    assert len(caught.value.faults) == 3
    assert all("about" in fault for fault in caught.value.faults)
    assert not run.directory.exists()  # nothing was trained, so there is nothing to resume
    assert not any(e["event"] == "step" for e in said.events)


def test_a_run_that_has_begun_keeps_its_passes(store, needs, monkeypatch):
    """On a smaller machine it may compute layers again, which changes no bit."""
    asking, whole, _ = needs
    said = Said()
    run = learn.prepare(store, asking(), said)
    with pytest.raises(TrainInterrupted):
        learn.execute(store, run, said, stop_after(1))
    monkeypatch.setattr(machine, "free", lambda: whole - 1)
    done = learn.execute(store, runs.find(store, run.id), Said())
    assert done.config.recipe.pass_tokens is None
    assert done.config.recipe.checkpointing
    monkeypatch.undo()
    whole_run = learn.execute(store, learn.prepare(store, asking(again=True), Said()), Said())
    assert whole_run.layer.digest != done.layer.digest  # the recipe differs, the factors do not
    assert factors_of(store, whole_run) == factors_of(store, done)


def test_an_update_is_fitted_anew(store, needs, tmp_path):
    asking, whole, _ = needs
    learn.execute(store, learn.prepare(store, asking(whole - 1), Said()), Said())
    layer = resolve(store, "fitted").layers[-1]
    assert layer.config.recipe.pass_tokens == 512
    given = update.Request(stack="fitted", data=[write_rows(tmp_path / "new.jsonl", word="shade")])
    assert update.recipe_of(layer, given).pass_tokens is None
    run = update.prepare(store, update.Request(**{**vars(given), "memory": 77}), Said())
    assert run.spec.memory == 77
    with pytest.raises(UsageError, match="given") as caught:
        learn.execute(store, run, Said())
    assert "new layer" in caught.value.hint


def test_defaults_are_what_a_recipe_without_the_keys_means():
    assert (Recipe().pass_tokens, Recipe().checkpointing) == (None, False)
