"""Runs that are cut short, at every stage; and two processes at once."""

import pytest

from lamina.core.errors import StoreBusyError, TrainInterrupted, UnknownNameError, UsageError
from lamina.core.evidence import NAMING_TYPE, NamingEvidence
from lamina.core.files import TEMP_PREFIX
from lamina.core.names import Name
from lamina.flows import job, learn, naming, runs
from lamina.flows.inventory import history
from lamina.stack.resolve import resolve
from lamina.store.layout import Store
from lamina.train import checkpoint
from tests.flows.together import at_once, gone_on_with
from tests.flows.world import Said, learned, request, write_rows
from tests.stacks import damage


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def kill(*_args, **_fields):
    raise Killed


def prepared(store, folder, **fields):
    return learn.prepare(store, request(write_rows(folder / "colour.jsonl"), **fields), Said())


def killed_at(monkeypatch, where, what, store, run, instead=kill):
    """Execute a run that is killed when it gets to `what`."""
    with monkeypatch.context() as patched:
        patched.setattr(where, what, instead)
        with pytest.raises(Killed):
            learn.execute(store, run, Said())


@pytest.fixture
def expected(store, tmp_path):
    """The layer that an undisturbed run makes, elsewhere in the store."""
    return learned(store, tmp_path, "mine", on="first").layer.digest


@pytest.fixture
def run(store, tmp_path, expected):
    """The same run again, prepared, the name it gives taken away."""
    store.untag_all("mine")
    store.collect(grace_seconds=0)
    return prepared(store, tmp_path, on="first")


def finish(store, run, expected):
    """Go on with a run as after a restart, and see that it ends as it would have."""
    store = Store.open(store.root, create=False)
    done = learn.execute(store, runs.find(store, run.id), Said())
    assert done.layer.digest == expected
    assert str(done.name) == "mine:v1"
    assert resolve(store, "mine").layers[-1].digest == expected
    (naming_record,) = store.evidence(done.stack.digest, NAMING_TYPE, NamingEvidence)
    assert (naming_record.name, naming_record.version) == ("mine", 1)
    assert store.verify().clean


def test_before_training(store, run, expected, monkeypatch):
    killed_at(monkeypatch, job, "train", store, run)
    finish(store, run, expected)


def test_in_training(store, run, expected):
    asked = iter([False, False, True])
    with pytest.raises(TrainInterrupted, match=f"--resume {run.id}"):
        learn.execute(store, run, Said(), lambda: next(asked))
    assert checkpoint.load(run.directory)[0].step == 2
    store.collect(grace_seconds=0)  # a collection must not take what a waiting run needs
    assert runs.find(store, None).id == run.id
    finish(store, run, expected)


def test_the_stack_beneath_may_have_moved_on(store, run, expected, tmp_path):
    asked = iter([False, True])
    with pytest.raises(TrainInterrupted):
        learn.execute(store, run, Said(), lambda: next(asked))
    assert str(learned(store, tmp_path, "first", steps=20).name) == "first:v2"
    finish(store, run, expected)


def test_over_a_bare_base_after_a_collection(store, tmp_path):
    waiting = prepared(store, tmp_path, name="fresh")
    store.collect(grace_seconds=0)
    assert str(learn.execute(store, waiting, Said()).name) == "fresh:v1"


def test_while_landing(store, run, expected, monkeypatch):
    killed_at(monkeypatch, Store, "put_evidence", store, run)
    assert run.result is None
    finish(store, run, expected)


def test_after_landing_before_the_exam(store, run, expected, monkeypatch):
    killed_at(monkeypatch, learn, "examine_for_gate", store, run)
    assert run.result.name is None
    store.collect(grace_seconds=0)
    finish(store, run, expected)


def test_after_the_name_moved_before_that_was_recorded(store, run, expected, monkeypatch):
    killed_at(monkeypatch, naming, "NamingEvidence", store, run)
    assert "mine" in store.names()
    finish(store, run, expected)
    assert history(store, "mine")[0]["passed"]


def test_before_the_result_was_written(store, run, expected, monkeypatch):
    write = runs.Run.finish

    def finish_unless_named(self, result):
        return write(self, result) if result.name is None else kill()

    killed_at(monkeypatch, runs.Run, "finish", store, run, finish_unless_named)
    finish(store, run, expected)
    assert len(history(store, "mine")) == 1


def test_a_damaged_checkpoint_says_what_to_do(store, run, expected):
    asked = iter([False, True])
    with pytest.raises(TrainInterrupted):
        learn.execute(store, run, Said(), lambda: next(asked))
    state = run.directory / checkpoint.FILE
    damage(state)
    with pytest.raises(RuntimeError, match="delete the file"):
        learn.execute(store, run, Said())
    state.unlink()
    finish(store, run, expected)


def test_finding_runs(store, tmp_path):
    with pytest.raises(UnknownNameError, match="no run is waiting"):
        runs.find(store, None)
    one, two = (prepared(store, tmp_path, name=name) for name in ("bbb", "aaa"))
    assert runs.find(store, "bbb").id == one.id
    assert runs.find(store, two.id).id == two.id
    assert runs.find(store, None).id == two.id
    with pytest.raises(UsageError, match="several"):
        runs.find(store, "20")
    with pytest.raises(UnknownNameError):
        runs.find(store, "ccc")


def test_runs_of_one_second_come_in_the_order_of_their_making(store, tmp_path):
    trained = runs.all_runs(store)
    made = [prepared(store, tmp_path, name=name) for name in ("ddd", "ccc", "bbb", "aaa")]
    assert [run.id for run in runs.all_runs(store)] == [run.id for run in (*trained, *made)]


def test_runs_that_know_only_their_second_come_before_what_that_second_made(store, tmp_path):
    one, two = (prepared(store, tmp_path, name=name) for name in ("bbb", "aaa"))
    for run, created in (
        (two, "2026-01-01T00:00:00.000001+00:00"),
        (one, "2026-01-01T00:00:00+00:00"),
    ):
        spec = run.spec.model_copy(update={"created": created})
        (run.directory / runs.SPEC).write_bytes(spec.to_bytes())
    assert [run.id for run in runs.all_runs(store)][:2] == [one.id, two.id]


def test_a_run_that_is_being_written_is_none_yet(store, run):
    before = [each.id for each in runs.all_runs(store)]
    half = run.directory.with_name(f"{TEMP_PREFIX}{run.id}-0123")
    half.mkdir()
    (half / runs.SPEC).write_bytes(run.spec.to_bytes()[:20])
    assert [each.id for each in runs.all_runs(store)] == before


def test_a_torn_last_event_is_left_out(store, run):
    (run.directory / runs.EVENTS).write_text('{"event": "step", "step": 1}\n{"event": "st')
    assert list(run.events()) == [{"event": "step", "step": 1}]


# -- processes -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_belongs_to_one_process_and_a_name_moves_once(store, run, tmp_path, monkeypatch):
    """Two runs that have landed want one name; a third is being trained here."""
    how = {"name": "shared", "steps": 1, "accept_regression": "either will do"}
    both = [prepared(store, tmp_path, seed=seed, **how) for seed in (1, 2)]
    for each in both:
        killed_at(monkeypatch, learn, "examine_for_gate", store, each)
    ids = [each.id for each in both]
    with run.lock():
        (one, *busy), (two, *_) = at_once(
            gone_on_with, (store.root, ids[0], run.id), (store.root, ids[1])
        )
        assert busy[0].startswith("StoreBusyError")
        with pytest.raises(StoreBusyError, match="another process"):
            learn.execute(store, run, Said())
    said = [one, two]
    named = [text for text in said if text.startswith("shared:v")]
    refused = [text for text in said if "somebody else moved" in text]
    assert len(named) + len(refused) == 2
    assert len(set(named)) == len(named) >= 1
    if refused:  # its layer has landed; going on examines it against the winner and counts up
        left = runs.find(store, ids[said.index(refused[0])])
        assert str(learn.execute(store, left, Said()).name) == "shared:v2"
    assert sorted(store.names()["shared"]) == ["latest", "v1", "v2"]
    assert store.resolve(Name("shared")).digest == store.names()["shared"]["v2"].digest
    assert str(learn.execute(store, run, Said()).name) == "mine:v1"
    assert store.verify().clean
