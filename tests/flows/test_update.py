"""Updating a layer: what is learned, rehearsed, asked, and which name moves."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from lamina.bases.families import layer_of
from lamina.core.errors import TrainInterrupted, UsageError
from lamina.core.manifests import LayerConfig
from lamina.core.names import Name
from lamina.core.recipe import Recipe
from lamina.core.report import Silent
from lamina.data.example import Example
from lamina.data.split import question_digest
from lamina.flows import at_hand, joined, learn, rehearsal, seen_rows, update
from lamina.flows.job import job_of
from lamina.flows.lineage import status_of
from lamina.flows.questions import carried
from lamina.flows.reproduce import reproduce
from lamina.lowrank import codec
from lamina.stack.compile import compile_stack, stored_factors
from lamina.stack.resolve import resolve
from tests.flows.world import Said, request, write_rows
from tests.stacks import new_store

pytestmark = pytest.mark.slow  # whole verbs, again and again


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


def test_an_update_leaves_the_lower_layers_as_they_are(tmp_path):
    store = new_store(tmp_path / "store", layers=3)
    old = trained(store, write_rows(tmp_path / "old.jsonl", 40))
    data = write_rows(tmp_path / "new.jsonl", 20, word="fruit")
    new = updated(store, "mine", data, overrides=(("above", 0.67),))
    before, after = (stored_factors(store, each.layer.digest) for each in (old, new))
    assert set(before) == set(after)
    for name in before:
        same = torch.equal(before[name].a_RI, after[name].a_RI)
        assert same == (layer_of(name) < 2), name
    with_all = updated(store, "mine:v1", data, name="all")
    moved = stored_factors(store, with_all.layer.digest)
    assert not any(torch.equal(before[name].a_RI, moved[name].a_RI) for name in before)
    fresh = trained(store, data, "upper", above=0.5)
    assert {layer_of(name) for name in fresh.config.modules} == {1, 2}


def prefixes(store, data, **fields):
    """What an update of the upper third found of its rows, and its layer's weights."""
    said = Said()
    asked = update.Request(
        stack=fields.pop("stack", "mine"), data=[data], accept_regression="a test",
        overrides=(("above", 0.67),), **fields,
    )  # fmt: skip
    done = learn.execute(store, update.prepare(store, asked, said), said)
    (found,) = [event for event in said.events if event["event"] == "prefixes"]
    weights = store.manifest(done.layer.digest).blob(codec.WEIGHTS_FILE).digest
    return found, weights


def test_an_update_takes_what_the_one_before_computed_of_old_rows(tmp_path):
    stores = [new_store(tmp_path / name, layers=3) for name in ("with", "without")]
    found = []
    for store in stores:
        trained(store, write_rows(tmp_path / "old.jsonl", 40))
        first, _ = prefixes(store, write_rows(tmp_path / "new.jsonl", 20, word="fruit"))
        assert (first["computed"] > 20, first["left"]) == (True, 0)
        if store is stores[1]:
            shutil.rmtree(store.cache_dir / "prefixes")
        found.append(prefixes(store, write_rows(tmp_path / "more.jsonl", 20, word="tree")))
    (after, weights), (anew, expected) = found
    assert after["left"] > 4
    assert after["computed"] + after["left"] == anew["computed"]
    assert weights == expected


def test_private_rows_leave_nothing_in_the_cache(tmp_path):
    store = new_store(tmp_path / "store", layers=3)
    trained(store, write_rows(tmp_path / "old.jsonl", 40), private=True)
    prefixes(store, write_rows(tmp_path / "new.jsonl", 20, word="fruit"))
    assert not (store.cache_dir / "prefixes").exists()


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


def test_what_travels_stands_for_the_versions_that_are_not_at_hand(store, tmp_path):
    data = write_rows(tmp_path / "old.jsonl", 600)
    trained(store, data)
    updated(store, "mine", write_rows(tmp_path / "second.jsonl", 20, word="fruit"))
    second = resolve(store, "mine").layers[0]
    Path(data).unlink()
    fresh = rows_in(write_rows(tmp_path / "third.jsonl", 10, word="tree"))
    parts = update.parts_of(store, [second], fresh, second.config.recipe)
    of_first, of_second = (
        {row for row in parts.rehearsal if word in row.prompt[0].content}
        for word in ("colour", "fruit")
    )
    travelling = set(rehearsal.of_layers(store, [second]))
    assert len(of_second) == second.config.data.rows
    assert of_second > travelling - of_first
    assert of_first
    assert of_first == travelling - of_second
    assert not parts.all_old


def test_rows_beyond_the_cap_of_the_exam_are_seen_too(store, tmp_path):
    data = write_rows(tmp_path / "old.jsonl", 40)
    old = trained(store, data, held_out_max=2).config.data
    assert old.held_out_rows == 2
    assert old.rows < 35
    assert updated(store, "mine", data) is None
    fresh = write_rows(tmp_path / "new.jsonl", 40, word="fruit")
    new = updated(store, "mine", fresh)
    assert new.config.data.rows + new.config.data.held_out_rows < 40
    assert updated(store, "mine", fresh) is None
    layer = new.stack.layers[0]
    assert len(at_hand.rows_of(store, layer)) == layer.config.data.rows
    assert reproduce(store, "mine:v1", (), Silent(), lambda: False).equal
    assert reproduce(store, "mine", (), Silent(), lambda: False).equal


def test_rows_of_the_layers_beneath_keep_a_share_of_their_own(store, tmp_path):
    asked = update.Request(stack="second", data=[write_rows(tmp_path / "new.jsonl", word="fruit")])
    run = update.prepare(store, asked, Silent())
    beneath = resolve(store, "first")
    compiled = compile_stack(store, beneath)
    spec = run.spec

    def pools(**changes):
        job, _ = job_of(store, run, spec.model_copy(update=changes), compiled)
        return job.rehearsal

    older, parents = pools()
    digests = [row.content_digest() for row in rehearsal.of_layers(store, beneath.layers)]
    assert [row.example for row in parents.rows] == digests
    assert len(older.rows) == resolve(store, "second").layers[1].config.data.rows
    assert (older.share, older.taught) == (update.REHEARSAL, "labels")
    assert (parents.share, parents.taught) == (Recipe().rehearsal, "stack")
    assert [pool.share for pool in pools(recipe=Recipe(rehearsal=0.0))] == [0.0, 0.0]
    assert pools(origin="distilled")[1].taught == "parents"
    assert learn.execute(store, run, Silent()).config.supersedes
    assert reproduce(store, "second", (), Silent(), lambda: False).equal


def test_old_rows_weigh_what_they_stand_for(store, tmp_path):
    trained(store, write_rows(tmp_path / "old.jsonl", 600))
    long = write_rows(tmp_path / "new.jsonl", 60, word="fruit", answer=lambda n: f"{n} " * 60)
    new = updated(store, "mine", long)
    rows = rehearsal.of_layers(store, new.stack.layers)
    assert len(rows) == rehearsal.MOST_ROWS
    old = sum("colour" in row.prompt[0].content for row in rows)
    (before,) = resolve(store, "mine:v1").layers
    learned = before.config.data.rows
    share = learned / (learned + new.config.data.rows)
    assert old / len(rows) == pytest.approx(share, abs=0.05)
    assert reproduce(store, "mine", (), Silent(), lambda: False).equal


def test_licences_of_all_versions_hold(store, tmp_path):
    trained(store, write_rows(tmp_path / "old.jsonl", 40), licence="cc0-1.0")
    for word in ("fruit", "tree"):
        new = updated(
            store, "mine", write_rows(tmp_path / f"{word}.jsonl", 12, word=word), licence="mit"
        )
        assert new.config.licence == "cc0-1.0 AND mit"


@pytest.mark.parametrize(
    ("stated", "joined_up"),
    [
        ([None, None], None),
        (["mit", None, "mit"], "mit"),
        (["mit or x"], "mit or x"),
        (["mit or x", "cc0-1.0"], "(mit or x) AND cc0-1.0"),
        (["(mit or x) AND cc0-1.0", "cc0-1.0"], "(mit or x) AND cc0-1.0"),
        (["(mit or x) AND cc0-1.0", "mit or x"], "(mit or x) AND cc0-1.0"),
        (["a AND b", "b AND c"], "a AND b AND c"),
        (["a AND b OR c", "a"], "(a AND b OR c) AND a"),
        (["gpl-2.0 WITH y", "mit"], "(gpl-2.0 WITH y) AND mit"),
    ],
)
def test_licences_are_joined_and_do_not_grow(stated, joined_up):
    assert joined.licence_of(stated) == joined_up


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


def test_an_older_version_is_not_updated_into_the_name_that_has_moved_on(first, tmp_path):
    store, _, _ = first
    updated(store, "mine:v1", write_rows(tmp_path / "b.jsonl", 12, word="fruit"))  # it stands there
    fresh = write_rows(tmp_path / "c.jsonl", 12, word="tree")
    with pytest.raises(UsageError, match="mine:v1 is not the version that mine stands at") as asked:
        updated(store, "mine:v1", fresh)
    assert "--as NAME" in asked.value.hint
    with pytest.raises(UsageError, match="mine has a newer version"):
        updated(store, "mine:v1", fresh, name="mine")
    assert str(updated(store, "mine:v1", fresh, name="other").name) == "other:v1"


def test_a_layer_with_a_newer_version_is_not_updated_in_a_stack_that_is_stale(first, tmp_path):
    store, _, _ = first
    trained(store, write_rows(tmp_path / "a.jsonl", 30, word="cloud"), "upper", on="mine")
    updated(store, "mine", write_rows(tmp_path / "b.jsonl", 12, word="fruit"))
    fresh = write_rows(tmp_path / "c.jsonl", 12, word="tree")
    with pytest.raises(UsageError, match=r"mine has a newer version \(mine:v2\)") as asked:
        updated(store, "upper", fresh, layer="mine")
    assert asked.value.hint == "lamina update mine --data …, then lamina refresh upper"
    assert str(updated(store, "upper", fresh, layer="mine", name="other").name) == "other:v1"


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


def test_an_update_that_leaves_out_what_is_known_is_reproduced_to_the_digest(first, tmp_path):
    store, _, _ = first
    how = {"steps": None, "epochs": 6.0, "lr": 2e-2, "batch_tokens": 128, "patience": None}
    data = write_rows(tmp_path / "new.jsonl", 12, word="fruit")
    every = updated(store, "mine", data, name="every", overrides=tuple(how.items()))
    new = updated(store, "mine", data, overrides=(*how.items(), ("known", 0.05)))
    assert new.cost.tokens < every.cost.tokens
    assert new.config.recipe.steps == every.config.recipe.steps  # of the schedule, however it ended
    assert reproduce(store, "mine", (), Said(), lambda: False).equal


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
