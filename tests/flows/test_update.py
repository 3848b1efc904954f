"""Updating a layer: what is learned, rehearsed, asked, and which name moves."""

import json
from pathlib import Path

import pytest

from lamina.core.errors import TrainInterrupted, UsageError
from lamina.core.manifests import LayerConfig
from lamina.core.names import Name
from lamina.core.report import Silent
from lamina.data.example import Example
from lamina.data.split import question_digest
from lamina.flows import learn, rehearsal, seen_rows, update
from lamina.flows.lineage import status_of
from lamina.flows.questions import carried
from lamina.flows.reproduce import reproduce
from lamina.stack.resolve import resolve
from tests.flows.world import Said, request, write_rows


def trained(store, data, name="mine", **fields):
    run = learn.prepare(store, request(data, name, **fields), Silent())
    return learn.execute(store, run, Silent())


def updated(store, stack, data, said=None, **fields):
    asked = update.Request(stack=stack, data=[data], accept_regression="a test", **fields)
    run = update.prepare(store, asked, said or Silent())
    return None if run is None else learn.execute(store, run, Silent())


def rows_in(path):
    return [Example.from_json(json.loads(line)) for line in Path(path).read_text().splitlines()]


@pytest.fixture
def first(store, tmp_path):
    """A store with `mine`, learned from 40 rows."""
    data = write_rows(tmp_path / "old.jsonl", 40)
    return store, data, trained(store, data)


def test_a_new_version_supersedes_the_old_over_the_same_parents(first, tmp_path):
    store, _, old = first
    new = updated(store, "mine", write_rows(tmp_path / "new.jsonl", 20, word="fruit"))
    config = new.config
    assert (config.supersedes, config.origin) == (old.layer.digest, "updated")
    assert (config.parents, config.rank, config.name) == (old.config.parents, 2, "mine")
    assert str(new.name) == "mine:v2"
    assert store.resolve(Name("mine")).digest == new.stack.digest


def test_repeated_updates_keep_the_rank(first, tmp_path):
    store, _, _ = first
    for turn in range(3):
        new = updated(store, "mine", write_rows(tmp_path / f"{turn}.jsonl", 12, word=f"w{turn}"))
        assert new.config.rank == 2
        assert new.config.parameters == resolve(store, "mine:v1").layers[0].config.parameters


def test_rows_seen_before_are_left_out(first, tmp_path):
    store, data, _ = first
    said = Said()
    assert updated(store, "mine", data, said) is None
    assert "0 to learn, 0 held out, 40 already seen" in said.sentences[-1]
    both = tmp_path / "both.jsonl"
    fresh = write_rows(tmp_path / "fresh.jsonl", 10, word="fruit")
    both.write_text(Path(data).read_text() + Path(fresh).read_text())
    new = updated(store, "mine", str(both), said)
    assert "40 already seen" in said.sentences[-1]
    assert new.config.data.rows + new.config.data.held_out_rows == 10
    assert updated(store, "mine", str(both)) is None  # the new version knows both


def test_seen_rows_of_a_private_layer_stay_on_the_machine(store, tmp_path):
    data = write_rows(tmp_path / "old.jsonl", 40)
    learned = trained(store, data, private=True)
    layer = resolve(store, "mine").layers[0]
    assert layer.manifest.blob(seen_rows.FILE) is None
    assert len(seen_rows.of_layer(store, layer)) == 40
    assert updated(store, "mine", data) is None
    assert learned.config.exams[0].private


def test_a_new_answer_replaces_the_old_question_everywhere(first, tmp_path):
    store, data, _ = first
    changed = write_rows(tmp_path / "new.jsonl", 40, answer=lambda n: f"it is number {n} now")
    old = resolve(store, "mine")
    said = Said()
    new = updated(store, "mine", changed, said)
    top = new.stack.layers[0]
    asked = {question_digest(row.prompt) for row in rows_in(changed)}
    assert asked == {question_digest(row.prompt) for row in rows_in(data)}
    for row in rehearsal.of_layers(store, [top]):
        assert "now" in row.answer.content
    for exam in carried(store, [top]):
        assert all("now" in item.example.answer.content for item in exam.items)
    assert "old questions answered anew" in said.sentences[-1]
    compared = {(c.exam, c.exam_digest) for c in new.examination.comparisons}
    stale = {(e.name, e.digest) for e in carried(store, old.layers)}
    assert not compared & stale  # nobody is held to the old answers


def test_old_questions_without_a_new_answer_stay_in_the_exam(first, tmp_path):
    store, _, _ = first
    (before,) = carried(store, resolve(store, "mine").layers)
    new = updated(store, "mine", write_rows(tmp_path / "new.jsonl", 20, word="fruit"))
    (after,) = carried(store, new.stack.layers)
    assert set(map(str, before.items)) < set(map(str, after.items))
    assert any(c.exam_digest == before.digest for c in new.examination.comparisons)


def test_all_old_rows_are_rehearsed_where_their_file_still_lies(first, tmp_path):
    store, data, _ = first
    fresh = rows_in(write_rows(tmp_path / "new.jsonl", 10, word="fruit"))
    layers = resolve(store, "mine").layers
    recipe = layers[0].config.recipe
    parts = update.parts_of(store, layers, fresh, recipe)
    assert len(parts.rehearsal) == layers[0].config.data.rows
    Path(data).write_text(Path(data).read_text() + "\n")  # no longer the layer's data
    parts = update.parts_of(store, layers, fresh, recipe)
    assert {r.content_digest() for r in parts.rehearsal} == {
        r.content_digest() for r in rehearsal.of_layers(store, layers)
    }


def test_updating_in_mid_stack_moves_the_layers_own_name(first, tmp_path):
    store, _, old = first
    above = trained(store, write_rows(tmp_path / "b.jsonl", 30, word="fruit"), "upper", on="mine")
    new = updated(store, "upper", write_rows(tmp_path / "c.jsonl", 12, word="tree"), layer="mine")
    assert str(new.name) == "mine:v2"
    assert new.config.supersedes == old.layer.digest
    assert new.config.parents == ()
    assert resolve(store, "upper").digest == above.stack.digest  # stale, not moved


def test_faults_are_named(first, tmp_path):
    store, data, _ = first
    with pytest.raises(UsageError, match="its layers, lowest first: mine"):
        updated(store, "mine", data, layer="other")
    with pytest.raises(UsageError, match="no layer to update"):
        updated(store, "pico", data)
    with pytest.raises(UsageError, match="keeps the layer's rank"):
        updated(store, "mine", data, overrides=(("rank", 4),))


def test_an_update_that_is_stopped_goes_on_to_the_same_layer(first, tmp_path):
    store, _, _ = first
    fresh = write_rows(tmp_path / "new.jsonl", 30, word="fruit")
    asked = update.Request(stack="mine", data=[fresh], accept_regression="a test")
    run = update.prepare(store, asked, Silent())
    calls = iter([False, False, True])
    with pytest.raises(TrainInterrupted):
        learn.execute(store, run, Silent(), lambda: next(calls))
    stopped = learn.execute(store, run, Silent())
    store.tag(Name("mine"), store.resolve(Name("mine", "v1")), expected=stopped.stack.digest)
    whole = updated(store, "mine", fresh)
    assert whole.layer.digest == stopped.layer.digest


def test_the_config_says_where_it_comes_from(first, tmp_path):
    store, _, old = first
    new = updated(store, "mine", write_rows(tmp_path / "new.jsonl", 20, word="fruit"))
    stored = store.config(store.manifest(new.layer.digest), LayerConfig)
    assert stored == new.config
    assert stored.supersedes == old.layer.digest


def test_an_update_is_reproduced_to_the_digest(first, tmp_path):
    store, _, _ = first
    new = updated(store, "mine", write_rows(tmp_path / "new.jsonl", 20, word="fruit"))
    again = reproduce(store, "mine", (), Silent(), lambda: False)
    assert again.layer == again.again == new.layer.digest


def test_under_another_name_an_update_branches_off_and_outdates_nothing(first, tmp_path):
    store, _, old = first
    trained(store, write_rows(tmp_path / "b.jsonl", 30, word="cloud"), "upper", on="mine")
    new = updated(
        store, "mine", write_rows(tmp_path / "new.jsonl", 20, word="fruit"), name="experiment"
    )
    assert str(new.name) == "experiment:v1"
    assert new.config.supersedes is None
    assert new.config.sources[0].layer == old.layer.digest
    assert all(status.fresh for status in status_of(store))
    assert updated(store, "experiment", str(tmp_path / "new.jsonl")) is None  # rows are known
    again = reproduce(store, "experiment", (), Silent(), lambda: False)
    assert again.equal
