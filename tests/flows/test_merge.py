"""Merging parallel layers end to end, on a pico base."""

import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from lamina.core.errors import CheckError, GateError, UsageError, WrongParentError
from lamina.core.evidence import CERTIFICATE_TYPE, CertificateEvidence
from lamina.core.manifests import StackedLayer
from lamina.core.report import Silent
from lamina.export import parity
from lamina.flows import landing, rehearsal, seen_rows
from lamina.flows.contributions import contributions
from lamina.flows.examine import parent_of
from lamina.flows.inventory import describe, history
from lamina.flows.inventory import render as render_shown
from lamina.flows.merge import merge, render
from lamina.flows.merge_loss import loss_over, rows_of
from lamina.lowrank.attach import fold_into
from lamina.stack.combine.method import Options
from lamina.stack.combine.registry import METHODS
from lamina.stack.compile import compile_stack, stored_factors
from lamina.stack.resolve import resolve
from lamina.store.layout import Store
from lamina.tokens.batch import collate
from lamina.tokens.mask import encode_all
from lamina.train.objective import token_losses
from tests.flows.deaths import report_of
from tests.flows.world import Said, learned, write_rows
from tests.stacks import new_store, put_layer, random_factors
from tests.tolerance import TOLERANCE

pytestmark = pytest.mark.slow  # whole verbs, again and again

HERE = Path(__file__).parents[2]
PROMPTS = [list(range(8, 30)), [11, 250, 9, 9, 70]]


@pytest.fixture(scope="session")
def _parallel(_seed_store, tmp_path_factory):
    """The seed store with `third` over `first`, beside `second`; never changed."""
    folder = tmp_path_factory.mktemp("merge")
    shutil.copytree(_seed_store.root, folder / "store", symlinks=True)
    store = Store.open(folder / "store", create=False)
    learned(
        store, folder, "third", on="first", word="river", rank=3, author="bob", licence="mit",
        accept_regression="a test",
    )  # fmt: skip
    return store


@pytest.fixture
def store(_parallel, tmp_path):
    shutil.copytree(_parallel.root, tmp_path / "store", symlinks=True)
    return Store.open(tmp_path / "store", create=False)


def run(store, texts=("second", "third"), **how):
    options = {"method": "concat", "name": "both", "reporter": Said(), "override": "it is a test"}
    return merge(store, texts, **(options | how))


def logits(compiled):
    return parity.logits_of(compiled.model, PROMPTS)


def same(store, text, expected) -> bool:
    found = logits(compile_stack(store, resolve(store, text), dtype=torch.float32))
    return parity.compare(expected, found, torch.float32).max_rel < 1e-5


def tops(store):
    return [resolve(store, text).layers[-1] for text in ("second", "third")]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_lands_examines_and_names(store, name):
    done = run(store, method=name)
    stack = resolve(store, "both")
    beneath, layer = stack.layers
    assert (done["name"], done["stack"], done["layer"]) == ("both:v1", stack.digest, layer.digest)
    assert beneath.digest == resolve(store, "first").layers[0].digest
    config = layer.config
    assert (config.origin, config.name, config.recipe) == ("merged", "both", None)
    assert [item.layer for item in config.sources] == [top.digest for top in tops(store)]
    weights = [each["weight"] for each in done["merged"]]
    assert [item.weight for item in config.sources] == weights
    assert [exam.name for exam in config.exams] == ["second/loss", "third/loss"]
    assert 2 <= config.rank <= 5
    assert (config.alpha, config.scaling) == (float(config.rank), "lora")

    (found,) = store.evidence(layer.digest, CERTIFICATE_TYPE, CertificateEvidence)
    assert done["certificate"] == found.model_dump(mode="json")
    assert (found.method, found.rank_before) == (name, 5)
    assert found.weights == (1.0, 1.0)
    assert found.density == METHODS[name].density
    assert (found.seed is None) is not METHODS[name].seeded
    assert (found.discarded > 0) is (METHODS[name].result == "dense")
    assert (found.logits_difference > 1e-5) is (METHODS[name].result == "dense")
    kept_of = [(kept.exam, kept.layer) for kept in found.exams]
    assert kept_of == [("second/loss", "second"), ("third/loss", "third")]

    table = done["matrix"]
    assert table["stacks"] == ["first (parent)", "second", "third", "both (merged)"]
    assert table["exams"] == ["first/loss", "second/loss", "third/loss"]
    assert len(table["cells"]) == 12
    values = {(cell["stack"], cell["exam"]): cell["value"] for cell in table["cells"]}
    for kept in found.exams:
        assert kept.before == pytest.approx(values[kept.layer, kept.exam])
        assert kept.after == pytest.approx(values["both (merged)", kept.exam])
        was = values["first (parent)", kept.exam]
        gain = (kept.after - was) / (kept.before - was)
        assert kept.retained == pytest.approx(gain if kept.before < was else None)
    assert done["metrics"]["compared_with"] == resolve(store, "first").digest
    assert not [entry for entry in store.entries() if entry.digest == layer.digest]
    assert store.verify().clean
    text = render(done)
    assert f"{name}: rank" in text
    assert "first (parent)" in text
    assert f"{name}: rank" in render_shown(describe(store, "both"))


@pytest.mark.parametrize("name", ["concat", "average", "ties", "dare", "knots"])
def test_the_stored_layer_is_what_the_method_makes(store, name):
    done = run(store, method=name, weights=(0.5, 1.5))
    layers = [stored_factors(store, top.digest) for top in tops(store)]
    wanted = METHODS[name].function(layers, (0.5, 1.5), Options())
    compiled = compile_stack(store, resolve(store, "first"), dtype=torch.float32)
    fold_into(compiled.linears, wanted.factors)
    assert same(store, "both", logits(compiled))
    assert done["certificate"]["discarded"] == pytest.approx(wanted.lost)


def test_weights_make_the_sum(store):
    """Against each update folded in alone, never as factors of one another."""
    run(store, weights=(0.5, -1.5))
    compiled = compile_stack(store, resolve(store, "first"), dtype=torch.float32)
    for top, weight in zip(tops(store), (0.5, -1.5), strict=True):
        for name, part in stored_factors(store, top.digest).items():
            linear = compiled.linears[name]
            change = weight * part.scale * (part.b_OR @ part.a_RI)
            linear.weight = nn.Parameter(linear.weight.data + change, requires_grad=False)
    assert same(store, "both", logits(compiled))


def test_what_travels(store):
    run(store, author="eve")
    layer = resolve(store, "both").layers[-1]
    sources = tops(store)
    assert (layer.config.author, layer.config.licence) == ("eve", "mit")
    assert layer.config.rehearsal == sources[0].config.rehearsal
    expected = rehearsal.sample(rehearsal.of_layers(store, sources))
    assert store.read(layer.manifest.blob(rehearsal.FILE).digest) == expected
    marks = [seen_rows.of_layer(store, source) for source in sources]
    assert seen_rows.of_layer(store, layer) == marks[0] | marks[1]
    for index, source in enumerate(sources):
        theirs = store.read(source.manifest.blob("exam-0.jsonl").digest)
        assert store.read(layer.manifest.blob(f"exam-{index}.jsonl").digest) == theirs


def test_withheld_questions_stay_withheld(store, tmp_path):
    learned(
        store, tmp_path, "secret", on="first", word="stone", private=True, accept_regression="-"
    )
    done = run(store, ("second", "secret"))
    layer = resolve(store, "both").layers[-1]
    assert [exam.private for exam in layer.config.exams] == [False, True]
    assert layer.manifest.blob("exam-1.jsonl") is None
    assert [kept["exam"] for kept in done["certificate"]["exams"]] == ["second/loss", "secret/loss"]


def test_several_layers_above_the_parent_are_one_contribution(store, tmp_path):
    learned(store, tmp_path, "above", on="second", word="stone", accept_regression="a test")
    done = run(store, ("above", "third"), weights=(2.0, 1.0))
    merged = resolve(store, "both").layers[-1]
    above = resolve(store, "above")
    assert [item.layer for item in merged.config.sources] == [
        *(layer.digest for layer in above.layers[1:]),
        tops(store)[1].digest,
    ]
    assert [item.weight for item in merged.config.sources] == [2.0, 2.0, 1.0]
    exams = [exam.name for exam in merged.config.exams]
    assert exams == ["second/loss", "above/loss", "third/loss"]
    assert done["matrix"]["stacks"][0] == "first (parent)"
    assert len(done["merged"][0]["layers"]) == 2


def test_layers_over_the_bare_base_with_weights_of_their_own(tmp_path):
    store = new_store(tmp_path / "store", layers=1)
    base = resolve(store, "pico").config.base
    weights = {"one": 0.5, "two": -1.5, "three": 1.0}
    only = {"one": "", "two": "q_proj", "three": "down_proj"}
    for seed, (name, weight) in enumerate(weights.items()):
        factors = random_factors(store, rank=1 + seed, seed=seed, only=only[name])
        layer = StackedLayer(layer=put_layer(store, name, factors).digest, weight=weight)
        store.move(name, store.put_stack(base, [layer]), expected=None)
    done = run(store, ("one", "two", "three"), weights=(1.0, 2.0, -1.0), name="all")
    assert done["matrix"]["stacks"][0] == "pico (parent)"
    compiled = compile_stack(store, resolve(store, "pico"), dtype=torch.float32)
    for (name, weight), more in zip(weights.items(), (1.0, 2.0, -1.0), strict=True):
        factors = stored_factors(store, resolve(store, name).layers[0].digest)
        fold_into(compiled.linears, {m: f.weighted(weight * more) for m, f in factors.items()})
    assert same(store, "all", logits(compiled))
    (layer,) = resolve(store, "all").layers
    ranks = {n.rpartition(".")[2]: f.rank for n, f in stored_factors(store, layer.digest).items()}
    assert (ranks["q_proj"], ranks["down_proj"], ranks["up_proj"]) == (3, 4, 1)
    assert [item.weight for item in layer.config.sources] == [0.5, -3.0, -1.0]


# -- learned ---------------------------------------------------------------------------------------


def parts_of(store):
    return contributions(store, [resolve(store, text) for text in ("second", "third")])


def test_the_loss_and_its_gradient_are_autograds(store):
    parent, parts = parts_of(store)
    layers = [part.factors(store) for part in parts]
    rows = rows_of(store, parts, [])[:6]
    given = (0.7, -0.4)
    with loss_over(store, parent, layers, rows, Silent(), torch.float32) as loss_and_gradients:
        loss_and_gradients((1.0, 2.0))  # what was tried before must not matter
        loss, gradients = loss_and_gradients(given)

    compiled = compile_stack(store, parent, dtype=torch.float32)
    weights = torch.tensor(given, requires_grad=True)
    for name, linear in compiled.linears.items():
        updates = [layer[name].scale * (layer[name].b_OR @ layer[name].a_RI) for layer in layers]
        total = linear.weight.data + sum(w * u for w, u in zip(weights, updates, strict=True))
        del linear.weight
        linear.weight = total
    encoded = encode_all(rows, compiled.format, max_length=1024).rows
    expected = token_losses(compiled.model, collate(encoded, compiled.pad_id)).mean()
    expected.backward()
    close = TOLERANCE[torch.float32]
    torch.testing.assert_close(torch.tensor(loss), expected.detach(), **close)
    torch.testing.assert_close(torch.tensor(gradients), weights.grad, **close)


def test_learned_weights_answer_the_examples_better_than_the_sum(store, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", 12, word="river")
    said = Said()
    done = run(store, method="learned", examples=[data], reporter=said)
    weights = tuple(each["weight"] for each in done["merged"])
    parent, parts = parts_of(store)
    layers = [part.factors(store) for part in parts]
    with loss_over(store, parent, layers, rows_of(store, parts, [data]), Silent()) as loss:
        assert loss(weights)[0] < loss((1.0, 1.0))[0]
    assert any("12 of 12 rows" in sentence for sentence in said.sentences)
    assert run(store, method="learned", examples=[data])["layer"] == done["layer"]


def test_rehearsal_sets_take_turns(store):
    _, parts = parts_of(store)
    rows = [row.messages[0].content for row in rows_of(store, parts, [])]
    assert ["animal" in text for text in rows[:4]] == [True, False, True, False]
    assert len(rows) == sum(len(rehearsal.of_layers(store, part.layers)) for part in parts)


def test_learned_needs_rows_of_every_kind(store, tmp_path):
    learned(
        store, tmp_path, "silent", on="first", word="stone", rehearsal_set="none",
        accept_regression="a test",
    )  # fmt: skip
    with pytest.raises(UsageError, match="every stack's kind") as caught:
        run(store, ("second", "silent"), method="learned")
    assert caught.value.faults == ("silent carries no rehearsal set",)
    assert "--examples" in caught.value.hint


# -- what is refused -------------------------------------------------------------------------------


def test_other_versions_of_the_parent_are_refused_with_both_named(store, tmp_path):
    old = resolve(store, "first").layers[0].digest
    learned(store, tmp_path, "first", word="stone", accept_regression="a test")
    new = resolve(store, "first").layers[0].digest
    learned(store, tmp_path, "fourth", on="first", word="cloud", accept_regression="a test")
    with pytest.raises(WrongParentError, match="different parents") as caught:
        run(store, ("second", "fourth"))
    assert caught.value.faults == (
        f"second stands on first @{old[7:19]}",
        f"fourth stands on first @{new[7:19]}",
    )
    assert f"lamina rebase fourth --onto @{old[7:19]}" in caught.value.hint
    with pytest.raises(WrongParentError) as caught:
        run(store, ("second", "first"))
    assert "lamina rebase second --onto first" in caught.value.hint
    assert "both" not in store.names()


def test_other_bases_are_refused(store, tmp_path):
    from lamina.flows.bases import pull
    from tests.pico import pico_base

    pull(store, str(pico_base(tmp_path / "other", hidden=32, seed=9)), "other", Silent())
    with pytest.raises(WrongParentError, match="different bases") as caught:
        run(store, ("second", "other"))
    assert [fault.split()[0] for fault in caught.value.faults] == ["second", "other"]
    assert "lamina rebase" in caught.value.hint


@pytest.mark.parametrize(
    "texts", [("second", "first"), ("second", "second:v1"), ("second", "pico")]
)
def test_nothing_to_merge(store, texts):
    with pytest.raises(UsageError, match="nothing to merge"):
        run(store, texts)


def test_the_same_layers_twice(store):
    with pytest.raises(UsageError, match="second and second:v1 are the same"):
        run(store, ("second", "second:v1", "third"))


def test_every_wrong_option_is_named(store):
    with pytest.raises(UsageError) as caught:
        run(store, ("second",), weights=(1.0, 2.0), density=2.0, seed=1, examples=["x"])
    assert len(caught.value.faults) == 6
    with pytest.raises(UsageError, match="did you mean 'knots'"):
        run(store, method="knot")
    with pytest.raises(UsageError, match="sum to 0"):
        run(store, method="average", weights=(1.0, -1.0))
    with pytest.raises(UsageError, match="plain name"):
        run(store, name="pico")


def test_versions_of_one_layer_are_pointed_out(store, tmp_path):
    older = resolve(store, "second").layers[-1]
    factors = stored_factors(store, older.digest)
    newer = put_layer(
        store, "second", factors, older.config.parents, supersedes=older.digest, author="later"
    )
    said = Said()
    run(store, (f"@{older.digest[7:]}", f"@{newer.digest[7:]}"), method="average", reporter=said)
    assert any("--method average" in sentence for sentence in said.sentences)
    expected = logits(compile_stack(store, resolve(store, "second"), dtype=torch.float32))
    assert same(store, "both", expected)  # the mean of a layer and itself


def test_a_harmful_merge_is_refused_and_kept(store):
    harm = random_factors(store, rank=2, scale=30.0)
    layer = put_layer(store, "harm", harm, resolve(store, "first").config.layers)
    with pytest.raises(GateError, match="both was not moved") as caught:
        run(store, ("second", f"@{layer.digest[7:]}"), override=None)
    assert "both" not in store.names()
    kept = caught.value.hint.partition("kept as ")[2].partition(";")[0]
    found = resolve(store, kept).layers[-1]
    assert found.config.origin == "merged"
    assert store.evidence(found.digest, CERTIFICATE_TYPE, CertificateEvidence)
    assert run(store, ("second", f"@{layer.digest[7:]}"))["name"] == "both:v1"
    assert history(store, "both")[0]["override"] == "it is a test"


def test_a_merge_that_is_not_the_sum_is_refused(store, monkeypatch):
    """A payload stored twice as strong stands in for a wrong merge."""
    real = landing.adapter_blobs

    def too_strong(store, factors, **how):
        doubled = {name: part.weighted(2.0) for name, part in factors.items()}
        return real(store, doubled, **(how | {"alpha": 2 * how["alpha"]}))

    monkeypatch.setattr(landing, "adapter_blobs", too_strong)
    before = store.names()
    with pytest.raises(CheckError, match="not what concat makes"):
        run(store)
    assert store.names() == before
    assert not [e for e in store.entries() if e.artifactType and e.artifactType.endswith("layer.v1")
                and e.ref_name is None]  # fmt: skip


def test_merging_again_changes_nothing(store):
    first = run(store)
    again = run(store)
    for key in ("layer", "stack", "name", "certificate"):
        assert again[key] == first[key]
    assert len(history(store, "both")) == 1
    assert parent_of(store, resolve(store, "both")).digest == resolve(store, "first").digest


# -- kill -9 ---------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_kill_at_every_few_writes_and_merge_again(store, tmp_path):
    report = report_of("tests.flows.merge_crash", store.root, tmp_path)
    assert report["wanted"]["certified"]
    assert not report["wanted"]["damage"]
    assert report["deaths"] >= 10
