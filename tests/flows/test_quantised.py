"""A quantised base through the life of a stack: train, stack, examine, talk, carry, export."""

import hashlib

import pytest
import torch
from peft import PeftModel

from lamina.bases.quantised import QuantisedLinear
from lamina.core.errors import UsageError, WrongParentError
from lamina.core.evidence import COST_TYPE, CostEvidence
from lamina.core.manifests import StackConfig, StackedLayer
from lamina.export.parity import logits_of
from lamina.flows import bases
from lamina.flows.adapters import export
from lamina.flows.examine import examine_stack
from lamina.flows.merge import merge
from lamina.flows.rebase import Request, rebase
from lamina.flows.squash import squash
from lamina.flows.talk import Conversation
from lamina.stack.compile import base_directory, compile_stack, layer_factors, unpacked
from lamina.stack.resolve import of_config, resolve
from tests.bases.others import theirs
from tests.flows.world import Said, learned
from tests.stacks import BASE, new_store
from tests.tolerance import TOLERANCE

pytestmark = pytest.mark.slow  # whole verbs, again and again

KINDS = ("nf4", "int8")
PROMPTS = [list(range(8, 30)), [11, 250, 9, 9, 70]]
ANYHOW = {"accept_regression": "only its way is tested", "dtype": "float32"}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def store(tmp_path_factory, kind):
    """`second` over `first` over the packed base; `aside` beside second; `plain` on the base."""
    root = tmp_path_factory.mktemp(kind)
    store = new_store(root / "store", hidden=64, dtype=torch.bfloat16)
    bases.pull(store, BASE, "packed", Said(), quantise=kind)
    learned(store, root, "first", "packed", steps=12, **ANYHOW)
    learned(store, root, "second", "first", word="animal", **ANYHOW)
    learned(store, root, "aside", "first", word="stone", **ANYHOW)
    learned(store, root, "plain", BASE, word="river", **ANYHOW)
    return store


def logits(store, name, dtype=torch.float32):
    return logits_of(compile_stack(store, resolve(store, name), dtype=dtype).model, PROMPTS)


def close(found, expected):
    for a, b in zip(found, expected, strict=True):
        scale = b.abs().max()
        torch.testing.assert_close(a / scale, b / scale, **TOLERANCE[torch.float32])


def blobs(store, name):
    manifest = store.manifest(store.bases()[name].digest)
    return {
        b.title: hashlib.sha256(store.path(b.digest).read_bytes()).hexdigest()
        for b in manifest.layers
    }


# -- the base --------------------------------------------------------------------------------------


def test_the_base_says_what_it_is_and_what_it_was_made_from(store, kind):
    found = {item["name"]: item for item in bases.listing(store)}
    assert found["packed"]["quantised"] == kind
    assert found["packed"]["made_from"] == found[BASE]["identity"]
    assert found["packed"]["identity"] != found[BASE]["identity"]
    assert found["packed"]["bytes"] < found[BASE]["bytes"]
    assert found[BASE]["quantised"] is None


def test_quantising_again_stores_nothing_new(store, kind):
    again = bases.pull(store, BASE, "packed", Said(), quantise=kind)
    assert not again.new
    assert not (store.root / "work").exists() or not any((store.root / "work").iterdir())


def test_a_base_that_is_not_in_the_store_is_pulled_and_packed(tmp_path, store, kind):
    from lamina.store.layout import Store

    source = tmp_path / "source"
    source.mkdir()
    for path in base_directory(store, store.bases()[BASE]).iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    other = Store.open(tmp_path / "other")
    pulled = bases.pull(other, str(source), None, Said(), quantise=kind)
    assert pulled.name == f"source-{kind}"
    assert set(other.bases()) == {pulled.name}  # the plain base is not kept
    mine = {item["name"]: item for item in bases.listing(store)}["packed"]
    assert pulled.config.identity == mine["identity"]


def test_unknown_ways_are_refused(store):
    with pytest.raises(UsageError, match="nf4 or int8"):
        bases.pull(store, BASE, None, Said(), quantise="int4")
    with pytest.raises(UsageError, match="no source of a base"):
        bases.pull(store, "nobody", None, Said(), quantise="nf4")


def test_nothing_that_was_done_wrote_into_the_base(store):
    """Layers were trained on it, examined and carried."""
    manifest = store.manifest(store.bases()["packed"].digest)
    found = blobs(store, "packed")
    assert {f"sha256:{found[b.title]}" for b in manifest.layers} == {
        b.digest for b in manifest.layers
    }


# -- layers on it ----------------------------------------------------------------------------------


def test_layers_name_the_packed_base_and_are_refused_elsewhere(store):
    first, packed, plain = (resolve(store, n) for n in ("first", "packed", BASE))
    assert first.layers[0].config.base == packed.config.base
    for layer, base in ((first.layers[0], plain), (resolve(store, "plain").layers[0], packed)):
        config = StackConfig(base=base.config.base, layers=(StackedLayer(layer=layer.digest),))
        with pytest.raises(WrongParentError, match="was trained on base"):
            of_config(store, config, label="it")


def test_a_second_layer_stands_on_factors_and_learned_something(store):
    compiled = compile_stack(store, resolve(store, "second"))
    bare = compile_stack(store, resolve(store, "packed"))
    for name, linear in compiled.linears.items():
        assert isinstance(linear, QuantisedLinear)
        assert len(linear.term[0]) == 4  # two layers of rank 2
        assert torch.equal(linear.supplied(), bare.linears[name].supplied())
    cost = store.evidence(resolve(store, "second").layers[1].digest, COST_TYPE, CostEvidence)[-1]
    assert cost.loss_after < cost.loss_before
    plain = store.evidence(resolve(store, "plain").layers[0].digest, COST_TYPE, CostEvidence)[-1]
    assert 0 < cost.base_bytes < plain.base_bytes


def test_what_was_trained_is_what_is_examined(store):
    """The loss of the exam's rows through training's forward and through the compiled stack."""
    stack = resolve(store, "second")
    compiled = compile_stack(store, stack, dtype=torch.float32)
    layered = logits_of(compiled.model, PROMPTS)
    whole = unpacked(compile_stack(store, resolve(store, "packed"), dtype=torch.float32))
    for layer in stack.layers:
        for name, factors in layer_factors(store, layer).items():
            linear = whole.linears[name]
            linear.weight.data += factors.scale * factors.b_OR @ factors.a_RI
    close(layered, logits_of(whole.model, PROMPTS))
    bare = logits(store, "packed")
    assert (layered[0] - bare[0]).abs().max() > 0.01 * bare[0].abs().max()


def test_exams_and_chat_answer(store):
    scores = examine_stack(store, "second", Said()).to_json()["scores"]
    assert {score["layer"] for score in scores} >= {"first", "second"}
    said = "".join(Conversation(store, "second", max_tokens=4).ask("which animal has number 3?"))
    assert isinstance(said, str)


# -- to others -------------------------------------------------------------------------------------


def test_peft_reads_the_stack_over_the_packed_base(store, tmp_path):
    result = export(store, "second", tmp_path / "out", "peft", Said())
    assert result["parity"]["value"] < result["parity"]["limit"] == 1e-4
    base = theirs(base_directory(store, store.bases()["packed"]))
    bare = logits_of(base, PROMPTS)  # and compressed-tensors unpacks, which PEFT needs
    wrapped = PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
    found = logits_of(wrapped, PROMPTS)
    close(logits(store, "second"), found)
    assert (found[0] - bare[0]).abs().max() > 0.01 * bare[0].abs().max()


def test_merging_into_packed_weights_is_refused_and_says_what_to_do(store, tmp_path, kind):
    with pytest.raises(UsageError) as caught:
        export(store, "second", tmp_path / "out", "hf", Said())
    said = str(caught.value)
    assert f"weights in {kind}" in said
    assert "--to peft" in said
    assert "--onto-base" in said
    assert not (tmp_path / "out").exists()


def test_the_bare_packed_base_is_handed_out_as_it_is(store, tmp_path):
    export(store, "packed", tmp_path / "out", "hf", Said())
    close(logits(store, "packed"), logits_of(theirs(tmp_path / "out"), PROMPTS))


@pytest.mark.parametrize(("stack", "onto"), [("second", BASE), ("plain", "packed")])
def test_stacks_are_carried_between_the_base_and_the_packed_one(store, tmp_path, stack, onto):
    request = Request(stack=stack, onto=onto, name=f"{stack}-there", keep=0.0, override="any",
                      at_most="project")  # fmt: skip
    done = rebase(store, request, Said(), lambda: False)
    assert done.named.stack.base.digest == store.bases()[onto].digest
    if onto == BASE:
        export(store, f"{stack}-there", tmp_path / "out", "hf", Said())
        assert (tmp_path / "out" / "model.safetensors").is_file()


def test_squashed_it_answers_the_same(store):
    squash(store, "second", name="one", reporter=Said(), override="any")
    assert len(resolve(store, "one").layers) == 1
    close(logits(store, "one"), logits(store, "second"))


@pytest.mark.parametrize("method", ["concat", "ties"])
def test_parallel_layers_merge_over_packed_weights(store, method):
    merge(store, ["second", "aside"], method=method, name=f"both-{method}", reporter=Said(),
          override="any")  # fmt: skip
    stack = resolve(store, f"both-{method}")
    assert stack.base.digest == store.bases()["packed"].digest


def test_a_float32_base_packs_and_computes_in_bfloat16(tmp_path, kind):
    store = new_store(tmp_path / "store", hidden=64, layers=1)
    bases.pull(store, BASE, "packed", Said(), quantise=kind)
    learned(store, tmp_path, "first", "packed", accept_regression="only its way is tested")
    compiled = compile_stack(store, resolve(store, "first"))
    assert compiled.dtype == torch.bfloat16
    for linear in compiled.linears.values():
        assert linear.supplied().dtype == linear.term[0].dtype == torch.bfloat16
    assert all(p.dtype == torch.bfloat16 for p in compiled.model.parameters())
    exact, rounded = (logits(store, "first", d)[0] for d in (torch.float32, torch.bfloat16))
    assert (exact - rounded).abs().max() < 0.1 * exact.abs().max()
