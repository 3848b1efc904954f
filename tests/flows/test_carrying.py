"""What carrying a layer knows of its past, and what it says when it stops or is refused."""

import shutil
from pathlib import Path

import pytest

from lamina.core.errors import GateError, TrainInterrupted, UnknownNameError, UsageError
from lamina.core.evidence import COST_TYPE, CostEvidence
from lamina.core.manifests import LAYER_TYPE, StackedLayer
from lamina.core.names import Name
from lamina.core.recipe import Recipe
from lamina.core.report import Silent
from lamina.flows import at_hand, descent, learn, rehearsal, runs, seen_rows, update
from lamina.flows.bases import pull
from lamina.flows.ladder.distil import BATCH_TOKENS, PASSES, SHARE_FRESH, distil
from lamina.flows.ladder.retrain import retrain
from lamina.flows.ladder.rung import Move
from lamina.flows.ladder.training import tokens_of
from lamina.flows.lineage import status_of
from lamina.flows.questions import carried
from lamina.flows.refresh import RETUNE, plan_of, refresh
from lamina.flows.squash import squash
from lamina.stack.resolve import resolve
from tests.books import Books
from tests.flows.test_ladder import carry, never, newer, refreshed
from tests.flows.world import Said, harmful, learned, request, write_rows
from tests.pico import pico_base
from tests.stacks import put_layer, random_factors

pytestmark = pytest.mark.slow  # stacks are trained again and again


def move(store, stack, onto, **fields):
    values = {
        "store": store, "old": resolve(store, stack, force=True), "onto": resolve(store, onto),
        "supersede": False, "command": "lamina rebase", "reporter": Silent(), "should_stop": never,
    }  # fmt: skip
    return Move(**values | fields)


def name(store, text, layer):
    """Point a name at a layer over the bare base."""
    base = resolve(store, "pico").config.base
    stack = store.put_stack(base, [StackedLayer(layer=layer.digest)])
    store.tag(Name(text), stack, expected=None)


def run_of(store, layer):
    """The run that made a layer."""
    (run,) = (r for r in runs.all_runs(store) if r.result and r.result.layer == layer.digest)
    return run.spec


def seconds(store, *layers):
    costs = [store.evidence(layer, COST_TYPE, CostEvidence)[-1].seconds for layer in layers]
    return pytest.approx(sum(costs), abs=1e-6)


def stopped_after(said, words):
    """Asks for a stop once the reporter has said this."""
    return lambda: any(words in sentence for sentence in said.sentences)


@pytest.fixture
def mine(store, tmp_path):
    """`mine`, updated once, `other` beside it; the files of both of its trainings."""
    old = learned(store, tmp_path, "mine", word="fruit")
    learned(store, tmp_path, "other", word="cloud")
    new = newer(store, tmp_path, stack="mine", layer="mine")
    files = [str(tmp_path / "fruit.jsonl"), str(tmp_path / "newer.jsonl")]
    return old, new, files


# -- data ------------------------------------------------------------------------------------------


def test_a_retrained_layer_can_be_trained_again(store, tmp_path, monkeypatch):
    learned(store, tmp_path, "mine", word="fruit")
    learned(store, tmp_path, "other", word="cloud")
    old = resolve(store, "mine").layers[0]
    monkeypatch.chdir(tmp_path)
    made = retrain(move(store, "mine", "other", data=["fruit.jsonl"])).stack.layers[-1]
    assert made.config.data.content == old.config.data.content
    assert made.config.recipe.held_out == old.config.recipe.held_out
    assert made.config.data.format == old.config.data.format
    assert run_of(store, made).sources == (str(tmp_path / "fruit.jsonl"),)
    assert at_hand.rows_of(store, made) == at_hand.rows_of(store, old)


def test_a_layer_whose_data_lies_where_it_lay_records_that(store, tmp_path):
    learned(store, tmp_path, "mine", word="fruit")
    learned(store, tmp_path, "other", word="cloud")
    made = retrain(move(store, "mine", "other")).stack.layers[-1]
    assert run_of(store, made).sources == (str(tmp_path / "fruit.jsonl"),)


def test_a_distilled_layer_holds_rows_out_in_later_updates(store, tmp_path):
    learned(store, tmp_path, "other", word="cloud")
    made = distil(move(store, "first", "other")).stack.layers[-1]
    assert made.config.recipe.held_out == 0.3
    assert run_of(store, made).sources == ()


def trained_on(store, layer, tokens):
    """Record that a layer's training took so many tokens."""
    cost = store.evidence(layer.digest, COST_TYPE, CostEvidence)[-1]  # the newest counts
    store.put_evidence(
        COST_TYPE, cost.model_copy(update={"tokens": tokens}), store.describe(layer.digest)
    )
    assert descent.cost_of(store, layer).tokens == tokens


def test_rows_are_written_only_where_the_budget_is_left_for_them(store, tmp_path):
    pull(store, str(pico_base(tmp_path / "wide", hidden=48, layers=2, seed=5)), "wide", Silent())
    layer = resolve(store, "first").layers[0]
    rows = rehearsal.of_layers(store, [layer])
    a_pass = tokens_of(rows)
    for passes, writes in ((1, False), (PASSES, False), (40 * PASSES, True)):
        trained_on(store, layer, round(passes * a_pass / SHARE_FRESH))
        said = Said()
        made = distil(move(store, "first", "wide", reporter=said, data=[f"run {passes}"]))
        config = made.stack.layers[-1].config
        assert any(text.startswith("wrote") for text in said.sentences) is writes
        assert config.recipe.batch_tokens <= BATCH_TOKENS
        assert config.data.rows >= len(rows)
        if not writes:
            assert config.data.rows == len(rows)
            assert config.recipe.epochs == pytest.approx(passes, abs=0.02)


def test_what_is_private_stays_private_on_the_way(store, tmp_path):
    """A layer that shows its rows' marks, but not its questions."""
    learned(store, tmp_path, "mine", word="fruit")
    learned(store, tmp_path, "other", word="cloud")
    layer = resolve(store, "mine").layers[0]
    exams = tuple(exam.model_copy(update={"private": True}) for exam in layer.config.exams)
    config = layer.config.model_copy(update={"exams": exams})
    name(store, "secret", store.put_layer(config, layer.manifest.layers))
    data = [str(tmp_path / "fruit.jsonl")]
    made = retrain(move(store, "secret", "other", data=data)).stack.layers[-1]
    assert run_of(store, made).private
    assert seen_rows.is_private(made)


def test_an_updated_layer_is_trained_again_on_all_of_its_rows(store, mine):
    old, new, files = mine
    rows = old.config.data.rows + new.config.data.rows
    made = retrain(move(store, "mine", "other")).stack.layers[-1]
    assert made.config.data.rows == rows
    assert {file.name for file in made.config.data.files} == {"fruit.jsonl", "newer.jsonl"}
    assert set(run_of(store, made).sources) == set(files)
    recipe, fresh = made.config.recipe, Recipe()
    assert (recipe.rehearsal, recipe.rehearse) == (fresh.rehearsal, fresh.rehearse)
    assert (recipe.protect, recipe.above) == (fresh.protect, fresh.above)


def test_files_that_are_given_must_be_all_of_the_data(store, mine, tmp_path):
    old, new, files = mine
    assert "not all of its data" in retrain(move(store, "mine", "other", data=files[1:]))
    assert "not all of its data" in retrain(move(store, "mine", "other", data=files[:1]))
    both = tmp_path / "everything.jsonl"
    more = write_rows(tmp_path / "more.jsonl", word="river")
    with both.open("wb") as out:
        for file in (*files, more):
            with open(file, "rb") as part:
                shutil.copyfileobj(part, out)
    made = retrain(move(store, "mine", "other", data=[str(both)])).stack.layers[-1]
    assert made.config.data.rows == old.config.data.rows + new.config.data.rows


def test_rows_that_are_not_all_at_hand_are_not_trained_on(store, mine, tmp_path):
    (tmp_path / "fruit.jsonl").unlink()
    assert "not all of its data is at hand" in retrain(move(store, "mine", "other"))


def test_two_answers_to_one_question_are_both_learned_again(store, tmp_path):
    one = write_rows(tmp_path / "one.jsonl", 30)
    two = write_rows(tmp_path / "two.jsonl", 30, answer=lambda n: f"{n} is a number")
    both = tmp_path / "both.jsonl"
    both.write_text(Path(one).read_text() + Path(two).read_text())
    learn.execute(store, learn.prepare(store, request(str(both)), Silent()), Silent())
    layer = resolve(store, "mine").layers[0]
    rows, whole = at_hand.all_rows(store, layer)
    assert whole
    assert len(rows) == layer.config.data.rows


def test_without_a_recipe_there_is_a_reason(store, tmp_path):
    layer = put_layer(store, "bare", random_factors(store))
    name(store, "bare", layer)
    data = write_rows(tmp_path / "any.jsonl")
    for given in ((), (data,)):
        assert "no recipe" in retrain(move(store, "bare", "first", data=given))


# -- cost and price --------------------------------------------------------------------------------


def test_training_anew_costs_what_all_trainings_took(store, mine):
    old, new, _ = mine
    done = carry(store, "mine", "other", name="both", at_most="copy")
    assert done.layers[0].evidence.retrain_seconds == seconds(
        store, old.layer.digest, new.layer.digest
    )
    again = carry(store, "both", "first", name="three", at_most="copy")
    assert all(layer.evidence.retrain_seconds for layer in again.layers)


def test_a_carried_layer_keeps_its_price(store, tmp_path):
    trained = resolve(store, "second").layers[1].digest
    newer(store, tmp_path)
    refreshed(store, at_most="copy")
    again = write_rows(tmp_path / "again.jsonl", 30, word="river")
    asked = update.Request(stack="first", data=[again], accept_regression="a test")
    learn.execute(store, update.prepare(store, asked, Silent()), Silent())
    step = plan_of(store, resolve(store, "second"))[1]
    assert step.action == "carry"
    assert step.retrain_seconds == seconds(store, trained)
    assert step.retune_seconds == pytest.approx(RETUNE * step.retrain_seconds)
    assert pytest.approx(0.15) == RETUNE


# -- who replaces whom -----------------------------------------------------------------------------


def test_a_rebase_outdates_nobody_elses_layers(store, tmp_path):
    """`second` and `poet` share a layer; the rebase of one must not make the other stale."""
    learned(store, tmp_path, "poet", on="second", word="plant")
    learned(store, tmp_path, "agent", on="first", word="river", accept_regression="a test")
    shared = resolve(store, "second").layers[1].digest
    done = carry(store, "poet", "agent", at_most="copy")
    _, _, second, poet = done.named.stack.layers
    assert (second.config.supersedes, second.config.sources[0].layer) == (None, shared)
    assert second.config.origin == "carried"
    assert poet.config.supersedes is not None
    assert all(status.fresh for status in status_of(store))
    assert refreshed(store, "second").current
    with pytest.raises(UsageError, match="every layer of second"):
        carry(store, "second", "poet")


def test_a_carried_version_answers_for_what_it_still_asks(store, tmp_path):
    """`foo` holds a copy of the new version of `mine`, which answers the old questions anew."""
    learned(store, tmp_path, "mine", word="fruit")
    learned(store, tmp_path, "poet", on="mine", word="plant", accept_regression="a test")
    (stale,) = carried(store, resolve(store, "mine").layers)
    changed = write_rows(tmp_path / "new.jsonl", 40, word="fruit", answer=lambda n: f"{n} now")
    asked = update.Request(stack="mine", data=[changed], accept_regression="a test")
    learn.execute(store, update.prepare(store, asked, Silent()), Silent())
    learned(store, tmp_path, "other", word="cloud")
    carry(store, "mine", "other", name="foo", at_most="copy")
    done = carry(store, "poet", "foo", at_most="copy")
    assert [layer.config.name for layer in done.named.stack.layers] == ["other", "mine", "poet"]
    compared = {c.exam_digest for c in done.named.examination.comparisons}
    assert stale.digest not in compared


def test_kin_are_followed_to_the_first(tmp_path):
    books = Books(tmp_path / "store")
    first = books.layer("x")
    found = [first]
    for number in (1, 2):
        source = (StackedLayer(layer=found[-1]),)
        found.append(books.layer("x", number=number, origin="carried", sources=source))
    found.append(books.layer("x", number=3, supersedes=found[-1], origin="updated"))
    mixed = books.layer("y", number=4, origin="merged", sources=(StackedLayer(layer=first),))
    store = books.store
    assert descent.kin(store, descent.version(store, found[-1])) == set(found)
    assert descent.kin(store, descent.version(store, mixed)) == {mixed}


def test_an_old_version_does_not_move_the_name(store, tmp_path):
    assert refreshed(store, "first:v1").current
    newer(store, tmp_path, stack="first")
    before = store.names()["first"]
    learned(store, tmp_path, "other", word="cloud")
    with pytest.raises(UsageError, match="an older version"):
        refreshed(store, "first:v1")
    with pytest.raises(UsageError, match="has moved on") as caught:
        carry(store, "first:v1", "other")
    assert "--as NAME" in caught.value.hint
    with pytest.raises(UsageError, match="has moved on"):
        squash(store, "first:v1", rank=1, reporter=Silent())
    assert store.names()["first"] == before
    assert str(carry(store, "first:v1", "other", name="side", at_most="copy").named.name) == (
        "side:v1"
    )


# -- refusals --------------------------------------------------------------------------------------


def test_a_refusal_says_what_was_lost(store, tmp_path):
    newer(store, tmp_path)
    with pytest.raises(GateError, match="lost too much") as caught:
        carry(store, "second", "first", keep=100, at_most="copy", override=None)
    assert any(fault.startswith("copy, which kept most: second/") for fault in caught.value.faults)
    assert "--keep" in caught.value.hint
    assert "--data" in caught.value.hint
    with pytest.raises(GateError, match="lost too much") as caught:
        refreshed(store, keep=100, at_most="copy", override=None)
    assert "--data" not in caught.value.hint


def test_a_refusal_says_whom_it_harms(store, tmp_path):
    run = learn.prepare(store, harmful(tmp_path, accept_regression="a test"), Silent())
    learn.execute(store, run, Silent())
    newer(store, tmp_path)
    with pytest.raises(GateError, match="harms an exam beneath") as caught:
        carry(store, "broken", "first", keep=-1000, at_most="copy", override=None)
    assert any("first/loss" in fault for fault in caught.value.faults)
    assert "--keep" not in caught.value.hint
    assert "--accept-regression" in caught.value.hint


def test_only_what_is_taken_is_kept(store, tmp_path):
    newer(store, tmp_path)
    before = {entry.digest for entry in store.entries()}
    with pytest.raises(GateError):
        carry(store, "second", "first", keep=100, override=None)
    left = [e for e in store.entries() if e.digest not in before and e.artifactType == LAYER_TYPE]
    assert len(left) == 1


# -- stopping --------------------------------------------------------------------------------------


def test_between_two_examinations_a_stop_is_heeded(store, tmp_path):
    newer(store, tmp_path)
    said = Said()
    with pytest.raises(TrainInterrupted, match="between two examinations") as caught:
        refresh(
            store, "second", said, stopped_after(said, "trying to copy"), keep=0.5,
            at_most="project", override="so be it",
        )  # fmt: skip
    assert caught.value.hint == (
        "go on with: lamina refresh second --keep 0.5 --at-most project "
        "--accept-regression 'so be it'"
    )


def test_a_stop_before_the_gate_is_heeded(store, tmp_path):
    newer(store, tmp_path)
    said = Said()
    before = store.names()["second"]
    with pytest.raises(TrainInterrupted, match="between two examinations"):
        carry(
            store, "second", "first", said, stopped_after(said, "of its gain kept"), keep=-1000,
            at_most="copy",
        )  # fmt: skip
    assert store.names()["second"] == before


def test_whoever_stops_the_writing_of_rows_is_told_the_whole_command(store, tmp_path):
    pull(store, str(pico_base(tmp_path / "wide", hidden=48, layers=2, seed=5)), "wide", Silent())
    said, data = Said(), write_rows(tmp_path / "any rows.jsonl")
    trained_on(store, resolve(store, "first").layers[0], 10**6)
    with pytest.raises(TrainInterrupted, match="written") as caught:
        carry(
            store, "first", "wide", said, stopped_after(said, "trying to distil"),
            name="ported", keep=0.25, at_most="distil", data=[data], author="ann", override=None,
        )  # fmt: skip
    assert caught.value.hint == (
        "go on with: lamina rebase first --onto wide --as ported --keep 0.25 --at-most distil "
        f"--data '{data}' --author ann"
    )


def test_a_training_within_a_rebase_is_none_to_resume(store, tmp_path):
    learned(store, tmp_path, "other", word="cloud")
    made = distil(move(store, "first", "other"))
    spec = run_of(store, made.layer).model_copy(update={"created": "2026-01-01T00:00:00+00:00"})
    (store.runs_dir / spec.id / runs.SPEC).write_bytes(spec.to_bytes())
    assert any(run.finished and run.spec.part_of for run in runs.all_runs(store))
    with pytest.raises(UnknownNameError, match="no run is waiting"):
        runs.find(store, None)
    data = write_rows(tmp_path / "more.jsonl", word="river")
    waiting = learn.prepare(store, request(data, "aaa"), Silent())
    assert runs.find(store, None).id == waiting.id
    assert runs.all_runs(store)[-1].id == waiting.id  # by time, whatever it is called
