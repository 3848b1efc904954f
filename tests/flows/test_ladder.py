"""Carrying layers: which rung is taken, what it keeps, what is recorded, and what moves."""

import itertools
import signal

import pytest
import torch

from lamina.core.errors import GateError, TrainInterrupted, UsageError
from lamina.core.evidence import CARRIED_TYPE, CarriedEvidence
from lamina.core.manifests import LayerConfig
from lamina.core.names import Name
from lamina.core.report import Silent
from lamina.flows import learn, rebase, update
from lamina.flows.bases import pull
from lamina.flows.lineage import Lineage
from lamina.flows.refresh import plan_of, refresh
from lamina.stack.compile import stored_factors
from lamina.stack.resolve import resolve
from lamina.store.verify import verify
from tests.flows.deaths import report_of
from tests.flows.world import Said, learned, write_rows
from tests.pico import pico_base

pytestmark = pytest.mark.slow  # whole verbs, again and again

LONG = {"steps": 30, "eval_every": 10}


def never() -> bool:
    return False


def carry(store, stack, onto, said=None, should_stop=never, **fields):
    asked = rebase.Request(stack=stack, onto=onto, **{"override": "a test"} | fields)
    return rebase.rebase(store, asked, said or Silent(), should_stop)


def newer(store, tmp_path, stack="second", layer="first", **overrides):
    """A new version of `first`, beneath `second`."""
    data = write_rows(tmp_path / "newer.jsonl", 30, word="tree")
    asked = update.Request(
        stack=stack, data=[data], layer=layer, accept_regression="a test",
        overrides=tuple(overrides.items()),
    )  # fmt: skip
    run = update.prepare(store, asked, Silent())
    return learn.execute(store, run, Silent())


def evidence(store, digest):
    return store.evidence(digest, CARRIED_TYPE, CarriedEvidence)[-1]


def test_a_copy_is_the_same_factors_over_other_parents(store, tmp_path):
    new = newer(store, tmp_path)
    old = resolve(store, "second").layers[-1]
    done = carry(store, "second", "first", at_most="copy")
    top = done.named.stack.layers[-1]
    assert done.layers[0].evidence.rung == "copy"
    assert top.config.parents == new.stack.config.layers
    assert (top.config.origin, top.config.supersedes) == ("carried", old.digest)
    for name, factors in stored_factors(store, top.digest).items():
        was = stored_factors(store, old.digest)[name]
        assert torch.equal(factors.a_RI, was.a_RI)
        assert torch.equal(factors.b_OR, was.b_OR)
    assert top.config.exams == old.config.exams
    assert evidence(store, top.digest).source == old.digest
    assert str(done.named.name) == "second:v2"
    assert not verify(store).faults


def test_a_rung_that_loses_too_much_is_passed_over(store, tmp_path):
    newer(store, tmp_path)
    said = Said()
    done = carry(store, "second", "first", said, keep=100)
    tried = [rung for rung, _ in done.layers[0].evidence.tried]
    assert not done.layers[0].passed
    assert {*tried, done.layers[0].evidence.rung} == {"copy", "project", "distil", "retrain"}
    assert all("of the gain kept" in why for rung, why in done.layers[0].evidence.tried)
    assert done.to_json()["layers"][0]["passed"] is False


def test_without_an_override_nothing_moves(store, tmp_path):
    newer(store, tmp_path)
    before = store.resolve(Name("second")).digest
    with pytest.raises(GateError, match="lost too much") as caught:
        carry(store, "second", "first", keep=100, at_most="project", override=None)
    assert "--keep" in caught.value.hint
    assert store.resolve(Name("second")).digest == before


def test_projection_changes_a_alone_and_only_where_inputs_moved(store, tmp_path):
    newer(store, tmp_path, lr=0.1, steps=20)
    old = resolve(store, "second").layers[-1]
    done = carry(store, "second", "first", keep=100, at_most="project")
    found = done.layers[0]
    if found.evidence.rung == "copy":  # it kept most; the projection is then on record as tried
        assert "project" in dict(found.evidence.tried)
        return
    was, now = stored_factors(store, old.digest), stored_factors(store, found.layer.digest)
    assert all(torch.equal(was[name].b_OR, now[name].b_OR) for name in was)
    first = "model.layers.0.self_attn.q_proj"  # reads the embeddings, which nothing changed
    torch.testing.assert_close(was[first].a_RI, now[first].a_RI, rtol=1e-4, atol=1e-5)
    assert any(not torch.allclose(was[n].a_RI, now[n].a_RI, atol=1e-4) for n in was)


def test_another_base_is_reached_by_distillation(store, tmp_path):
    other = pico_base(tmp_path / "wide", hidden=48, layers=2, seed=5)
    pull(store, str(other), "wide", Silent())
    with pytest.raises(UsageError, match="name of its own"):
        carry(store, "first", "wide")
    done = carry(store, "first", "wide", name="ported", keep=0, at_most="distil")
    top = done.named.stack.layers[-1]
    assert done.layers[0].evidence.rung == "distil"
    assert dict(done.layers[0].evidence.tried)["copy"] == "the bases differ in shape"
    assert (top.config.origin, top.config.supersedes) == ("distilled", None)
    assert top.config.sources[0].layer == resolve(store, "first").layers[0].digest
    assert top.config.base == resolve(store, "wide").config.base
    assert top.config.licence == "cc0-1.0"


def test_a_distillation_that_is_stopped_goes_on_where_it_was(store, tmp_path):
    other = pico_base(tmp_path / "wide", hidden=48, layers=2, seed=5)
    pull(store, str(other), "wide", Silent())
    calls = itertools.count()
    with pytest.raises(TrainInterrupted, match="lamina rebase first --onto wide"):
        carry(
            store, "first", "wide", name="ported", keep=0, at_most="distil",
            should_stop=lambda: any(store.runs_dir.glob("distil-*/events.jsonl"))
            and next(calls) > 2,
        )  # fmt: skip
    (run,) = store.runs_dir.glob("distil-*")
    done = carry(store, "first", "wide", name="ported", keep=0, at_most="distil")
    assert [run] == list(store.runs_dir.glob("distil-*"))
    assert done.layers[0].evidence.rung == "distil"
    with pytest.raises(UsageError, match="part of a longer work"):
        learn.execute(store, learn.runs.find(store, run.name), Silent())


def test_the_layers_own_data_trains_it_again(store, tmp_path):
    newer(store, tmp_path)
    data = write_rows(tmp_path / "animal.jsonl", word="animal")
    done = carry(store, "second", "first", keep=100, data=[data])
    tried = dict(done.layers[0].evidence.tried)
    assert done.layers[0].evidence.rung == "retrain" or "of the gain" in tried["retrain"]


def test_data_of_another_layer_is_not_trained_on(store, tmp_path):
    newer(store, tmp_path)
    other = write_rows(tmp_path / "other.jsonl", word="cloud")
    done = carry(store, "second", "first", keep=100, data=[other])
    assert "not all of its data" in dict(done.layers[0].evidence.tried)["retrain"]


def test_layers_that_the_new_parents_have_stay_behind(store, tmp_path):
    newer(store, tmp_path)
    done = carry(store, "second", "first", keep=0)
    assert [layer.config.name for layer in done.named.stack.layers] == ["first", "second"]
    assert len(done.layers) == 1
    with pytest.raises(UsageError, match=r"stands on first already|every layer"):
        carry(store, "second", "first")


# -- refresh ---------------------------------------------------------------------------------------


def refreshed(store, name="second", said=None, should_stop=never, **fields):
    fields = {"override": "a test"} | fields
    return refresh(store, name, said or Silent(), should_stop, **fields)


def test_what_is_current_is_left_alone(store):
    done = refreshed(store)
    assert done.current
    assert done.named is None
    assert [step.action for step in done.plan] == ["keep", "keep"]


def test_a_dry_run_prices_and_changes_nothing(store, tmp_path):
    newer(store, tmp_path)
    before = store.entries()
    done = refreshed(store, dry_run=True)
    assert [step.action for step in done.plan] == ["replace", "carry"]
    assert done.plan[1].examine_seconds > 0
    assert done.plan[1].retrain_seconds > 0
    assert "in all" in done.render()
    assert store.entries() == before


def test_a_stale_stack_gets_the_new_version_and_its_layers_on_top(store, tmp_path):
    new = newer(store, tmp_path)
    third = learned(store, tmp_path, "third", on="second", word="plant")
    done = refreshed(store, "third", at_most="copy")
    layers = done.named.stack.layers
    assert layers[0].digest == new.layer.digest
    assert [layer.config.name for layer in layers] == ["first", "second", "third"]
    assert layers[2].config.supersedes == third.layer.digest
    assert [c.evidence.rung for c in done.carried] == ["copy", "copy"]
    assert str(done.named.name) == "third:v2"
    assert refreshed(store, "third").current
    assert not verify(store).faults


def test_a_layer_refreshed_for_one_stack_is_used_by_the_next(store, tmp_path):
    newer(store, tmp_path)
    learned(store, tmp_path, "third", on="second", word="plant")
    refreshed(store, "second", at_most="copy")
    plan = plan_of(store, resolve(store, "third"))
    assert [step.action for step in plan] == ["replace", "replace", "carry"]
    assert Lineage.of(store).newest(plan[1].layer) == plan[1].newest


def test_a_refresh_that_fails_the_gate_moves_nothing_and_can_be_overridden(store, tmp_path):
    newer(store, tmp_path)
    before = store.resolve(Name("second")).digest
    with pytest.raises(GateError):
        refreshed(store, keep=100, at_most="copy", override=None)
    assert store.resolve(Name("second")).digest == before
    done = refreshed(store, keep=100, at_most="copy", override="we know")
    assert str(done.named.name) == "second:v2"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_kill_at_every_few_writes_and_refresh_again(store, tmp_path):
    newer(store, tmp_path)
    report = report_of("tests.flows.refresh_crash", store.root, tmp_path)
    assert report["wanted"]["fresh"]
    assert not report["wanted"]["damage"]
    assert report["deaths"] >= 8


def test_only_names_are_refreshed(store):
    with pytest.raises(UsageError, match="no name of a stack"):
        refreshed(store, f"@{resolve(store, 'second').digest.removeprefix('sha256:')}")
    with pytest.raises(UsageError, match="no name of a stack"):
        refreshed(store, "pico")


def test_the_config_of_a_carried_layer_is_whole(store, tmp_path):
    newer(store, tmp_path)
    done = refreshed(store, at_most="copy")
    stored = store.config(store.manifest(done.carried[0].layer.digest), LayerConfig)
    assert stored.data == resolve(store, "second:v1").layers[1].config.data


def test_a_sibling_base_is_reached_by_copy(store, tmp_path):
    """Other weights and another configuration file, the same shapes and tokenizer."""
    sibling = pico_base(
        tmp_path / "sibling", hidden=32, layers=1, seed=9, max_position_embeddings=1024
    )
    pull(store, str(sibling), "sibling", Silent())
    done = carry(store, "first", "sibling", name="moved", at_most="project")
    bases = {resolve(store, name).base_config.architecture for name in ("pico", "sibling")}
    assert len(bases) == 2
    tried = {rung for rung, _ in done.layers[0].evidence.tried}
    assert {*tried, done.layers[0].evidence.rung} >= {"copy"}
    assert done.named.stack.config.base == resolve(store, "sibling").config.base
