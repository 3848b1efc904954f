"""The same work is known when it is asked for again; whatever changes the layer is other work."""

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.core.errors import GateError, TrainInterrupted, UsageError
from lamina.core.manifests import ExamSpec, SourceFile, StackConfig, StackedLayer
from lamina.core.names import Name
from lamina.core.rates import Rates
from lamina.core.recipe import Recipe
from lamina.flows import learn, runs, work
from lamina.flows.inventory import history
from lamina.flows.remove import remove
from lamina.stack.resolve import resolve
from lamina.store.layout import Store
from tests.flows.deaths import report_of
from tests.flows.together import at_once
from tests.flows.together import trained as trained_in_child
from tests.flows.world import Said, harmful, learned, request, write_rows
from tests.stacks import BASE, damage

pytestmark = pytest.mark.slow  # whole verbs, again and again

ONE, TWO = (f"sha256:{digit * 64}" for digit in "12")

SPEC = runs.RunSpec(
    id="20260102-030405-mine-1a2b",
    created="2026-01-02T03:04:05+00:00",
    name="mine",
    on="base",
    stack=StackConfig(base=ONE),
    recipe=Recipe(),
    format="chat",
    files=(SourceFile(name="rows.jsonl", sha256=ONE, bytes=10, rows=2),),
    sources=("/home/ann/rows.jsonl",),
    duplicates=0,
    skipped=0,
    exams=(),
)
FILES = {runs.TRAIN_ROWS: b"one\ntwo\n", runs.HELD_ROWS: b"three\n", runs.SEEN: b""}
OTHER = {
    "name": "yours",
    "stack": StackConfig(base=ONE, layers=(StackedLayer(layer=TWO),)),
    "recipe": Recipe(rank=8),
    "format": "alpaca",
    "files": (SourceFile(name="rows.jsonl", sha256=TWO, bytes=10, rows=2),),
    "duplicates": 1,
    "skipped": 1,
    "licence": "cc0-1.0",
    "author": "ann",
    "exams": (ExamSpec(name="mine/loss", scorer="loss", items=ONE, rows=3),),
    "private": True,
    "rehearsal_set": "none",
    "layer_name": "other",
    "origin": "updated",
    "start": ONE,
    "supersedes": ONE,
    "layer_sources": (StackedLayer(layer=ONE),),
}
"""Another value of every field that decides the layer."""
ASIDE = {
    "id": "20270102-030405-mine-1a2b",
    "created": "2027-01-02T03:04:05+00:00",
    "on": "@12",
    "sources": ("/mnt/rows.jsonl",),
    "accept_regression": "because",
    "force": True,
    "stream": True,
    "part_of": "lamina refresh",
    "key": TWO,
    "memory": 2_000_000_000,
    "rates": Rates(hardware="this", currency="EUR", per_hour=0.2),
}
"""Another value of every field that decides nothing of it."""


def key(files=FILES, /, **changes):
    return work.key_of(SPEC.model_copy(update=changes), files)


def test_every_field_of_a_request_is_known_to_decide_the_layer_or_not():
    assert set(runs.RunSpec.model_fields) == set(OTHER) | set(ASIDE)
    for field, value in OTHER.items():
        assert key(**{field: value}) != key(), field
    for field, value in ASIDE.items():
        assert key(**{field: value}) == key(), field


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("field", Recipe.model_fields)
def test_every_field_of_a_recipe_makes_other_work(field):
    value = getattr(Recipe(), field)
    other = value + type(value)(1) if isinstance(value, int | float) else ("something else",)
    assert key(recipe=Recipe().model_copy(update={field: other})) != key()


@given(st.dictionaries(st.sampled_from(("a", "b", "c")), st.binary(max_size=3)), st.data())
def test_every_byte_of_rows_and_questions_counts(files, data):
    other = data.draw(st.dictionaries(st.sampled_from(("a", "b", "c")), st.binary(max_size=3)))
    assert (key(files) == key(other)) == (files == other)


def test_laminas_source_counts_where_it_decides_a_layer(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "cli").mkdir()
    loop, gate = tmp_path / "train" / "loop.py", tmp_path / "cli" / "train.py"
    found = []
    for text in ("one", "two"):
        loop.write_text(text)
        gate.write_text("same")
        found.append(work.source.__wrapped__(tmp_path))
    gate.write_text("other")
    (tmp_path / "train" / "notes.txt").write_text("no source")
    assert found[0] != found[1] == work.source.__wrapped__(tmp_path)
    (tmp_path / "new_room").mkdir()
    (tmp_path / "new_room" / "maths.py").write_text("")
    assert work.source.__wrapped__(tmp_path) != found[1]  # what is new counts until it is let off


def test_other_source_or_libraries_are_other_work(monkeypatch):
    before = key()
    with monkeypatch.context() as patch:
        patch.setattr(work, "source", lambda package: ONE)
        assert key() != before
    with monkeypatch.context() as patch:
        patch.setattr(work, "version", lambda name: "99" if name == "torch" else "1")
        newer = key()
        patch.setattr(work, "version", lambda name: "1")
        assert key() != newer != before


# -- in a store ------------------------------------------------------------------------------------


@pytest.fixture
def trained(monkeypatch):
    """The runs that are really trained, by id."""
    from lamina.flows import job

    found = []
    real = job.train_and_land

    def counting(store, run, *rest):
        found.append(run.id)
        return real(store, run, *rest)

    monkeypatch.setattr(job, "train_and_land", counting)
    return found


def again(store, what):
    said = Said()
    return learn.execute(store, learn.prepare(store, what, said), said), said


def test_nothing_changed(store, tmp_path, trained):
    what = request(write_rows(tmp_path / "rows.jsonl"), author="ann")
    first, _ = again(store, what)
    before = store.index_path.read_bytes()
    second, said = again(store, what)
    assert len(trained) == 1
    assert second.layer == first.layer
    assert second.stack == first.stack
    assert (second.name, second.cost, second.config) == (first.name, first.cost, first.config)
    assert second.examination.results == first.examination.results
    assert second.examination.verdict == first.examination.verdict
    assert said.sentences[-1].startswith(f"nothing changed since layer @{first.layer.digest[7:19]}")
    assert store.index_path.read_bytes() == before  # not a byte of the store moved
    assert len(history(store, "mine")) == 1
    assert (
        first.layer
        == learn.execute(
            store,
            learn.prepare(
                store,
                request(write_rows(tmp_path / "rows.jsonl"), author="ann", again=True),
                Said(),
            ),
            Said(),
        ).layer
    )  # and training anew makes the very same layer
    assert len(trained) == 2


def test_the_newest_of_the_runs_of_one_second_is_gone_on_with(store):
    asked = SPEC.model_copy(update={"key": ONE})
    for number, end in enumerate("fade"):
        how = {"id": f"{SPEC.id[:-1]}{end}", "created": f"2026-01-02T03:04:05.00000{number}+00:00"}
        run = runs.write(store.runs_dir / how["id"], asked.model_copy(update=how), FILES)
        (run.directory / runs.EVENTS).touch()
    assert work.begun(store, asked).id == run.id


def test_what_changed_is_trained(store, tmp_path, trained):
    rows, more = tmp_path / "rows.jsonl", tmp_path / "more.jsonl"
    questions = tmp_path / "questions.jsonl"
    write_rows(rows)
    write_rows(more, 5, word="fruit")
    write_rows(questions, 3, word="planet")
    again(store, request(str(rows), on="first"))
    lines = rows.read_text().splitlines()

    def changed(**fields):
        before = len(trained)
        again(store, request(str(rows), on="first", accept_regression="a test", **fields))
        return len(trained) - before

    assert changed() == 0
    assert changed(steps=3) == 1
    assert changed(seed=1) == 1
    assert changed(author="bob") == 1
    assert changed(licence="mit") == 1
    assert changed(private=True, rehearsal_set="none") == 1
    assert changed(exam_files=[str(questions)]) == 1
    write_rows(questions, 4, word="planet")
    assert changed(exam_files=[str(questions)]) == 1  # a question more
    rows.write_text("".join(line + "\n" for line in reversed(lines)))
    assert changed() == 1  # rows in another order are batched otherwise
    lines[7] = lines[7].replace("the colour is", "that colour is")
    rows.write_text("".join(line + "\n" for line in lines))
    assert changed() == 1
    assert changed() == 0
    learned(store, tmp_path, "first", steps=20)
    assert changed() == 1  # another version beneath
    assert changed(name="other") == 1


def test_a_layer_that_is_gone_or_damaged_is_trained_again(store, tmp_path, trained):
    what = request(write_rows(tmp_path / "rows.jsonl"))
    first, _ = again(store, what)
    remove(store, ["mine"])
    kept, _ = again(store, what)  # its name is gone, its bytes are not
    assert (len(trained), str(kept.name)) == (1, "mine:v1")
    store.collect(grace_seconds=0)
    assert resolve(store, "mine").digest == first.stack.digest  # and it is kept
    remove(store, ["mine"])
    store.collect(grace_seconds=0)
    assert again(store, what)[0].layer == first.layer
    assert len(trained) == 2
    weights = store.manifest(first.layer.digest).blob("adapter_model.safetensors")
    damage(store.blobs_dir / weights.digest.removeprefix("sha256:"))
    fresh = Store.open(store.root, create=False)
    assert again(fresh, what)[0].layer == first.layer
    assert len(trained) == 3
    assert fresh.verify().clean  # the right bytes took the place of the wrong ones


def test_what_cannot_be_read_is_not_taken_for_the_work(store, tmp_path, trained):
    what = request(write_rows(tmp_path / "rows.jsonl"))
    again(store, what)
    (run,) = [each for each in runs.all_runs(store) if each.id == trained[0]]
    for file in (runs.RESULT, runs.SPEC):
        whole = (run.directory / file).read_bytes()
        damage(run.directory / file, cut=True)
        before = len(trained)
        fresh = learn.prepare(store, what, Said())
        assert fresh.id != run.id
        (run.directory / file).write_bytes(whole)
        assert len(trained) == before


def test_a_name_that_moved_on_moves_back_through_the_gate(store, tmp_path, trained):
    rows = write_rows(tmp_path / "rows.jsonl")
    first, _ = again(store, request(rows, "mine"))
    second, _ = again(store, request(rows, "mine", steps=1, accept_regression="a test"))
    assert (str(first.name), str(second.name)) == ("mine:v1", "mine:v2")
    back, _ = again(store, request(rows, "mine"))
    assert (str(back.name), back.stack.digest) == ("mine:v3", first.stack.digest)
    assert len(trained) == 2
    newest = history(store, "mine")[0]
    assert (newest["version"], newest["previous"]) == (3, second.stack.digest)
    assert newest["passed"]
    assert not [e for e in store.entries() if e.digest == first.layer.digest]  # no root is left


def test_the_gate_may_keep_a_name_from_moving_back(store, tmp_path, trained):
    rows = write_rows(tmp_path / "rows.jsonl")
    first, _ = again(store, request(rows, "mine", steps=1))
    again(store, request(rows, "mine"))
    with pytest.raises(GateError) as caught:
        again(store, request(rows, "mine", steps=1))
    assert f"--resume {trained[0]}" in caught.value.hint
    run = runs.to_resume(store, trained[0])  # what the hint says can be typed
    run.accept_regression("we want the old one")
    back = learn.execute(store, run, Said())
    assert (str(back.name), back.stack.digest) == ("mine:v3", first.stack.digest)
    assert len(trained) == 2


def test_the_gate_says_no_again_without_training(store, tmp_path, trained):
    for _ in range(2):
        with pytest.raises(GateError, match="significantly worse"):
            again(store, harmful(tmp_path))
    assert len(trained) == 1
    done, _ = again(store, harmful(tmp_path, accept_regression="colours are out"))
    assert (len(trained), str(done.name)) == (1, "broken:v1")
    assert history(store, "broken")[0]["override"] == "colours are out"
    remove(store, ["broken"])
    with pytest.raises(GateError):  # a reason that was given once is not given for good
        again(store, harmful(tmp_path))
    assert "broken" not in store.names()


def test_a_part_of_longer_work_is_not_taken(store, tmp_path):
    what = request(write_rows(tmp_path / "rows.jsonl"))
    first, _ = again(store, what)
    (run,) = [r for r in runs.all_runs(store) if r.result and r.result.layer == first.layer.digest]
    part = run.spec.model_copy(update={"part_of": "lamina refresh mine"})
    (run.directory / runs.SPEC).write_bytes(part.to_bytes())
    assert learn.prepare(store, what, Said()).id != run.id


def test_where_the_rows_lie_now_is_recorded(store, tmp_path, trained):
    old = tmp_path / "old"
    old.mkdir()
    rows = write_rows(old / "rows.jsonl")
    again(store, request(rows))
    moved = (old / "rows.jsonl").rename(tmp_path / "rows.jsonl")
    again(store, request(str(moved)))
    (run,) = [each for each in runs.all_runs(store) if each.id == trained[0]]
    assert (run.spec.sources, len(trained)) == ((str(moved),), 1)


def test_work_that_was_begun_is_named(store, tmp_path, trained):
    what = request(write_rows(tmp_path / "rows.jsonl"))
    run = learn.prepare(store, what, Said())
    said = Said()
    learn.prepare(store, what, said)
    assert not [s for s in said.sentences if "--resume" in s]  # nothing has been trained yet
    stops = iter([False, True])
    with pytest.raises(TrainInterrupted):
        learn.execute(store, run, Said(), lambda: next(stops))
    done, said = again(store, what)
    assert f"begun before; to go on there: lamina train --resume {run.id}" in said.sentences
    assert learn.execute(store, runs.to_resume(store, run.id), Said()).layer == done.layer


def test_work_that_was_written_down_is_gone_on_with_only_where_that_is_wanted(store, tmp_path):
    asked, before = request(write_rows(tmp_path / "rows.jsonl")), len(runs.all_runs(store))
    run = learn.prepare(store, asked, Said())
    assert learn.prepare(store, asked, Said()).id != run.id
    newest = learn.prepare(store, asked, Said(), go_on=True)
    assert newest.id == learn.prepare(store, asked, Said(), go_on=True).id
    assert len(runs.all_runs(store)) == before + 2


def test_a_finished_run_is_not_resumed(store, tmp_path, trained):
    again(store, request(write_rows(tmp_path / "rows.jsonl")))
    with pytest.raises(UsageError, match="finished: mine:v1"):
        runs.to_resume(store, trained[0])


# -- grown rows ------------------------------------------------------------------------------------


def grown(store, path, count, **fields):
    """Train on the first rows of many; what was said before training, and what in the end."""
    done, said = again(store, request(write_rows(path, count), **fields))
    return [s for s in said.sentences if "lamina update" in s], done.growth


def test_a_file_that_grew_is_offered_an_update(store, tmp_path):
    rows = tmp_path / "the rows.jsonl"
    assert grown(store, rows, 40) == ([], None)
    said, growth = grown(store, rows, 45)
    assert said == [
        f"mine has seen 40 of these 45 rows; the other 5 alone: lamina update mine --data '{rows}'"
    ]
    assert (growth.known, growth.new, growth.gone) == (40, 5, 0)
    assert grown(store, rows, 45) == ([], None)  # nothing changed
    said, growth = grown(store, rows, 44)
    assert said == []  # rows were taken away only: an update cannot unlearn
    assert growth is None


def test_edited_rows_are_said_to_stay(store, tmp_path):
    rows = tmp_path / "rows.jsonl"
    grown(store, rows, 40)
    lines = write_rows(rows, 40) and rows.read_text().splitlines()
    lines[0] = lines[0].replace("colour is", "colour may be")
    rows.write_text("".join(line + "\n" for line in lines))
    said = Said()
    learn.prepare(store, request(str(rows)), said)
    (offer,) = [s for s in said.sentences if "lamina update" in s]
    assert "the other 1 alone" in offer
    assert "from 1 rows that are gone" in offer


def test_other_layers_offer_no_update(store, tmp_path):
    rows = tmp_path / "rows.jsonl"
    grown(store, rows, 40)
    assert grown(store, rows, 42, name="yours")[0] == []  # no such name yet
    assert grown(store, rows, 42, on="first")[0] == []  # other parents
    grown(store, rows, 40, name="few", on=BASE)
    assert grown(store, rows, 100, name="few")[0] == []  # mostly new rows


# -- processes -------------------------------------------------------------------------------------


def test_two_equal_trainings_at_once_make_one_layer(store, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl")
    one, two = at_once(trained_in_child, *[(store.root, rows)] * 2)
    assert one[:2] == two[:2] == [one[0], "mine:v1"]
    assert len(history(store, "mine")) == 1
    assert store.verify().clean
    assert at_once(trained_in_child, *[(store.root, rows)] * 3) == [[one[0], "mine:v1", True]] * 3
    assert again(store, request(rows, again=True))[0].layer.digest == one[0]


def test_a_name_moves_once_when_two_ask_for_it_back(store, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl")
    first, _ = again(store, request(rows))
    again(store, request(rows, steps=1, accept_regression="a test"))
    found = at_once(trained_in_child, *[(store.root, rows)] * 2)
    assert [item[:2] for item in found] == [[first.layer.digest, "mine:v3"]] * 2
    assert sorted(store.names()["mine"]) == ["latest", "v1", "v2", "v3"]
    assert store.resolve(Name("mine")).digest == first.stack.digest
    assert store.verify().clean


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_kill_at_every_write_and_ask_again(store, tmp_path):
    """The same command after a kill ends as if nothing had happened, whatever it finds."""
    report = report_of("tests.flows.work_crash", store.root, tmp_path)
    assert report["wanted"]["moves"] == [[1, True]]
    assert not report["wanted"]["damage"]
    assert report["deaths"] >= 10
