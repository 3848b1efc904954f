"""Squashing a stack end to end, on a pico base."""

import signal
from pathlib import Path

import pytest
import torch

from lamina.core.errors import CheckError, GateError, UsageError
from lamina.core.evidence import CERTIFICATE_TYPE, CertificateEvidence
from lamina.core.manifests import StackedLayer
from lamina.data.read import read
from lamina.export import parity
from lamina.export.parity import compare, logits_of
from lamina.flows import naming, rehearsal, seen_rows
from lamina.flows.inventory import describe, history, render
from lamina.flows.squash import squash
from lamina.lowrank.squash import NOISE
from lamina.stack.compile import compile_stack, stored_factors
from lamina.stack.resolve import resolve
from lamina.store.layout import Store
from lamina.tokens.batch import collate
from lamina.tokens.mask import encode_all
from lamina.train.objective import token_losses
from lamina.train.teach import mixed, sayings
from tests.flows.deaths import report_of
from tests.flows.world import Said, learned, write_rows
from tests.stacks import new_store, put_layer, random_factors

pytestmark = pytest.mark.slow  # whole verbs, again and again

PROMPTS = [list(range(8, 30)), [11, 250, 9, 9, 70]]
HERE = Path(__file__).parents[2]


def run(store, text="second", **how):
    return squash(store, text, **({"reporter": Said()} | how))


def logits(store, text):
    return logits_of(compile_stack(store, resolve(store, text), dtype=torch.float32).model, PROMPTS)


def difference(store, one, two):
    return compare(logits(store, one), logits(store, two), torch.float32).max_rel


def stored_factors_equal(store, one, two):
    a, b = stored_factors(store, one), stored_factors(store, two)
    return all(torch.equal(a[n].a_RI, b[n].a_RI) and torch.equal(a[n].b_OR, b[n].b_OR) for n in a)


def test_an_exact_squash_is_the_same_model(store):
    original = resolve(store, "second")
    said = Said()
    done = run(store, reporter=said)
    stack = resolve(store, "second")
    (layer,) = stack.layers
    assert (done["name"], done["stack"], done["layer"]) == ("second:v2", stack.digest, layer.digest)
    assert difference(store, "second", "second:v1") < 1e-5
    for exam in done["metrics"]["comparisons"]:
        assert exam["after"] == pytest.approx(exam["before"], abs=1e-3)
    assert {c["exam"] for c in done["metrics"]["comparisons"]} == {"first/loss", "second/loss"}
    assert done["metrics"]["compared_with"] == original.digest
    assert done["metrics"]["gate"]["passed"]
    assert done["metrics"]["gate"]["policy"]["rounding"] == 2**-8
    assert any("linears" in event.get("text", "") for event in said.events)
    assert history(store, "second")[0]["passed"]
    assert not [entry for entry in store.entries() if entry.digest == layer.digest]  # the stack's
    assert store.verify().clean


def test_what_the_layer_says_of_itself(store, tmp_path):
    learned(store, tmp_path, "third", on="second", word="river", licence="mit or x", author="bob")
    sources = resolve(store, "third").layers
    run(store, "third", name="one")
    (layer,) = resolve(store, "one").layers
    config = layer.config
    assert (config.name, config.origin, config.parents, config.recipe) == (
        "one",
        "squashed",
        (),
        None,
    )
    assert config.sources == resolve(store, "third").config.layers
    assert (config.author, config.licence) == ("ann, bob", "cc0-1.0 AND (mit or x)")
    assert [exam.name for exam in config.exams] == ["first/loss", "second/loss", "third/loss"]
    assert (config.rank, config.alpha) == (6, 6.0)
    factors = stored_factors(store, layer.digest)
    assert {f.scale for f in factors.values()} == {1.0}
    assert config.parameters == sum(f.parameters for f in factors.values())
    assert set(config.modules) == set(factors)
    expected = rehearsal.sample(rehearsal.of_layers(store, sources))
    assert store.read(layer.manifest.blob(rehearsal.FILE).digest) == expected
    known = [seen_rows.of_layer(store, source) for source in sources]
    assert seen_rows.of_layer(store, layer) == frozenset().union(*known)
    assert run(store, "third", name="two", author="eve")["name"] == "two:v1"
    assert resolve(store, "two").layers[0].config.author == "eve"


def test_the_certificate_is_on_record_and_shown(store):
    done = run(store, rank=2, override="a trial")
    (found,) = store.evidence(done["layer"], CERTIFICATE_TYPE, CertificateEvidence)
    assert done["certificate"] == found.model_dump(mode="json")
    assert (found.method, found.rank, found.rank_before) == ("squash", 2, 4)
    assert 0 < found.discarded < found.worst_discarded < 1
    assert found.worst_module in resolve(store, "second").layers[0].config.modules
    measured = difference(store, "second", "second:v1")
    assert 0 < measured < 100 * found.logits_difference
    assert found.probes > 1
    assert [kept.exam for kept in found.exams] == ["first/loss", "second/loss"]
    assert all(kept.retained is not None for kept in found.exams)
    shown = describe(store, "second")
    assert shown["layers"][0]["certificate"] == done["certificate"]
    text = render(shown)
    assert "squash: rank 2, was 4" in text
    assert "of the gain kept" in text


def test_an_exact_certificate_leaves_out_rounding_alone(store):
    found = run(store)["certificate"]
    assert found["discarded"] <= found["worst_discarded"] <= NOISE
    assert found["logits_difference"] < 1e-5
    for kept in found["exams"]:
        assert kept["after"] == pytest.approx(kept["before"], abs=1e-3)


def test_what_a_cut_leaves_learns_to_say_what_the_stack_says(store, tmp_path):
    """On rows that nobody trained on: the passes bring a cut stack nearer to the whole one."""
    learned(store, tmp_path, "wide", word="river", rank=8, steps=30, lr=2e-2)
    rows = read([write_rows(tmp_path / "new.jsonl", 90, word="river")]).examples[60:]
    whole = compile_stack(store, resolve(store, "wide"), dtype=torch.float32)
    encoded = encode_all(rows, whole.format, max_length=64).rows
    said, batch = sayings(whole.model, encoded, 4096, whole.pad_id), collate(encoded, whole.pad_id)
    away, done = {}, {}
    for passes in (0, 8):
        name = f"after-{passes}"
        done[passes] = run(store, "wide", rank=1, passes=passes, name=name, override="a trial")
        model = compile_stack(store, resolve(store, name), dtype=torch.float32).model
        with torch.no_grad():
            away[passes] = float(token_losses(model, batch, mixed(batch, said)).mean())
    assert away[8] < away[0]
    cut, tuned = (done[passes]["certificate"] for passes in (0, 8))
    assert (cut["passes"], tuned["passes"], cut["rank"], tuned["rank"]) == (0, 8, 1, 1)
    assert cut["discarded"] < tuned["discarded"]  # the cut is the nearest to the update itself
    assert "8 passes over the rehearsal rows" in render(describe(store, "after-8"))
    again = run(store, "wide", rank=1, passes=8, name="again", override="a trial")
    assert stored_factors_equal(store, again["layer"], done[8]["layer"])


def test_nothing_is_trained_where_nothing_was_cut_or_no_rows_travel(store, tmp_path):
    assert run(store, rank=64)["certificate"]["passes"] == 0
    learned(store, tmp_path, "bare", word="river", rehearsal_set="none")
    done = run(store, "bare", rank=1, override="a trial")
    assert (done["certificate"]["rank"], done["certificate"]["passes"]) == (1, 0)


def test_a_tolerance_holds_for_every_linear(store):
    done = run(store, tolerance=0.4, override="a trial")
    assert 0 < done["certificate"]["discarded"] <= done["certificate"]["worst_discarded"] <= 0.4
    assert done["parameters"] < done["parameters_before"]


def test_a_stack_ruined_by_rank_1_is_refused_and_kept(store, tmp_path):
    learned(store, tmp_path, "third", on="second", word="river", rank=8, steps=30, lr=5e-2,
            accept_regression="the gate is asked below")  # fmt: skip
    before = resolve(store, "third").digest
    with pytest.raises(GateError, match="was not moved") as caught:
        run(store, "third", rank=1)
    assert resolve(store, "third").digest == before
    kept = caught.value.hint.partition("kept as ")[2].partition(";")[0]
    (layer,) = resolve(store, kept).layers
    assert layer.config.rank == 1
    assert store.evidence(layer.digest, CERTIFICATE_TYPE, CertificateEvidence)
    assert run(store, "third", rank=1, override="small is all")["name"] == "third:v2"
    assert history(store, "third")[0]["override"] == "small is all"
    undo = run(store, "second", name="third", override="a trial")["undo"]
    assert undo == 'lamina tag third:v2 third --accept-regression "as before"'
    assert store.verify().clean


def test_squashing_again_changes_nothing(store):
    first = run(store)
    said = Said()
    again = run(store, reporter=said)
    assert (again["layer"], again["name"]) == (first["layer"], "second:v2")
    assert (again["changed"], again["undo"]) == (False, None)
    assert any("one layer" in sentence for sentence in said.sentences)
    assert again["certificate"] == first["certificate"]
    assert len(history(store, "second")) == 2
    assert run(store, "first")["changed"] is False  # one trained layer is one layer
    assert run(store, "first", name="other")["name"] == "other:v1"


def test_weights_and_layers_over_some_linears(tmp_path):
    store = new_store(tmp_path / "store", layers=1)
    stacked = []
    for number, (only, weight) in enumerate([("", 0.5), ("q_proj", -1.5), ("down_proj", 1.0)]):
        layer = put_layer(
            store, f"l{number}", random_factors(store, rank=2, seed=number, only=only), stacked
        )
        stacked.append(StackedLayer(layer=layer.digest, weight=weight))
    base = resolve(store, "pico").config.base
    store.move("odd", store.put_stack(base, stacked), expected=None)
    done = run(store, "odd")
    assert difference(store, "odd", "odd:v1") < 1e-5
    ranks = {n.rpartition(".")[2]: f.rank for n, f in stored_factors(store, done["layer"]).items()}
    assert (ranks["q_proj"], ranks["down_proj"], ranks["up_proj"]) == (4, 4, 2)
    assert done["certificate"]["exams"] == []


def test_a_layer_that_cancels_another_leaves_zero(tmp_path):
    store = new_store(tmp_path / "store", layers=1)
    factors = random_factors(store, rank=2)
    one = put_layer(store, "one", factors)
    stacked = [StackedLayer(layer=one.digest)]
    minus = put_layer(store, "minus", {n: f.weighted(-1.0) for n, f in factors.items()}, stacked)
    stacked.append(StackedLayer(layer=minus.digest))
    store.move("none", store.put_stack(resolve(store, "pico").config.base, stacked), expected=None)
    run(store, "none")
    assert difference(store, "none", "pico") == 0.0


def test_withheld_questions_stay_withheld(store, tmp_path):
    how = {"private": True, "accept_regression": "what it forgets is not asked here"}
    learned(store, tmp_path, "secret", on="first", word="river", **how)
    run(store, "secret")
    (layer,) = resolve(store, "secret").layers
    assert [exam.private for exam in layer.config.exams] == [False, True]
    titles = {blob.title for blob in layer.manifest.layers}
    assert "exam-0.jsonl" in titles
    assert "exam-1.jsonl" not in titles
    open_rows = seen_rows.of_layer(store, resolve(store, "first").layers[0])
    assert seen_rows.of_layer(store, layer) == open_rows


def test_another_name_answers_for_what_it_replaces(store, tmp_path):
    learned(store, tmp_path, "other", word="river")
    other = resolve(store, "other").digest
    with pytest.raises(GateError, match="other/loss"):
        run(store, "second", name="other")
    assert resolve(store, "other").digest == other


def test_what_cannot_be_squashed(store):
    with pytest.raises(UsageError, match="bare base"):
        run(store, "pico", name="x")
    digest = resolve(store, "second").digest
    with pytest.raises(UsageError, match="no name to move") as caught:
        run(store, f"@{digest[7:19]}")
    assert "--as" in caught.value.hint
    with pytest.raises(UsageError) as caught:
        run(store, rank=0, tolerance=2.0, passes=-1)
    assert len(caught.value.faults) == 4
    with pytest.raises(UsageError, match="cannot be done") as caught:
        run(store, tolerance=0.1, passes=2)
    assert "only what --rank cuts" in caught.value.faults[0]
    with pytest.raises(UsageError, match="no base"):
        run(store, name="pico")
    assert resolve(store, "second").digest == digest


def test_by_digest_with_a_name(store):
    digest = resolve(store, "second").digest
    done = run(store, f"@{digest[7:19]}", name="flat")
    assert (done["name"], done["undo"]) == ("flat:v1", None)
    assert resolve(store, "second").digest == digest


def test_an_exact_squash_that_answers_otherwise_is_refused(store, monkeypatch):
    """No limit at all stands in for a wrong squash: rounding alone is then too much."""
    monkeypatch.setitem(parity.LIMITS, torch.float32, -1.0)
    before = resolve(store, "second").digest, store.entries()
    with pytest.raises(CheckError, match="no name was moved"):
        run(store)
    assert (resolve(store, "second").digest, store.entries()) == before


# -- kill -9 ---------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def test_killed_after_the_name_moved_before_that_was_recorded(store, monkeypatch):
    def kill(**_fields):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(naming, "NamingEvidence", kill)
        with pytest.raises(Killed):
            run(store)
    moved = resolve(store, "second").digest
    assert [move["passed"] for move in history(store, "second")] == [True, None]
    again = run(Store.open(store.root, create=False))
    assert (again["stack"], again["name"]) == (moved, "second:v2")
    assert [move["passed"] for move in history(store, "second")] == [True, True]
    layer = again["layer"]
    assert not [entry for entry in store.entries() if entry.digest == layer]  # the stack's alone


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_kill_at_every_write_and_squash_again(store, tmp_path):
    report = report_of("tests.flows.squash_crash", store.root, tmp_path)
    assert report["wanted"]["certified"]
    assert not report["wanted"]["damage"]
    assert report["deaths"] >= 20
