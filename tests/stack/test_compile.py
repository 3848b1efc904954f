"""Folded = factors attached, and nothing but what was trained is ever compiled."""

import hashlib
import shutil

import pytest
import torch

from lamina.bases import families
from lamina.core.errors import CorruptBlobError, LayerError, MissingBlobError
from lamina.lowrank import codec
from lamina.lowrank.attach import attached
from lamina.lowrank.maths import Factors, compose, fold
from lamina.stack.compile import base_directory, base_format, compile_stack, layer_factors
from lamina.stack.resolve import resolve
from lamina.store.layout import Store
from tests.stacks import (
    BASE,
    base_model,
    damage,
    new_store,
    put_layer,
    put_stack,
    random_factors,
)
from tests.tolerance import TOLERANCE

PROMPT = torch.arange(8, 40)[None]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = new_store(tmp_path_factory.mktemp("compile") / "store", layers=1)
    put_stack(store, "three", 3, weights=[1.0, 0.5, -2.0])
    return store


@pytest.fixture
def own(store, tmp_path):
    """A copy of the store that a test may damage."""
    shutil.copytree(store.root, tmp_path / "store", symlinks=True)
    return Store.open(tmp_path / "store", create=False)


@torch.inference_mode()
def logits(model):
    return model(input_ids=PROMPT).logits.float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folded_equals_attached(tmp_path, dtype):
    # stored in the dtype that it is run in, as bases are: both sides start from the same weights
    store = new_store(tmp_path / "store", layers=1, dtype=dtype)
    put_stack(store, "three", 3, weights=[1.0, 0.5, -2.0])
    stack = resolve(store, "three", force=True)
    compiled = compile_stack(store, stack, dtype=dtype)
    base = base_model(store, dtype)
    linears = families.linears(base)
    joined = compose([layer_factors(store, layer) for layer in stack.layers])
    with attached(base, joined, linears):
        through_factors = logits(base)
    folded = logits(compiled.model)
    assert compiled.dtype == dtype
    scale = through_factors.abs().max()
    torch.testing.assert_close(folded / scale, through_factors / scale, **TOLERANCE[dtype])
    assert (folded - logits(base)).abs().max() > 0.05 * scale  # the layers do something


def test_a_float32_base_is_rounded_once(store):
    stack = resolve(store, "three", force=True)
    compiled = compile_stack(store, stack, dtype=torch.bfloat16)
    exact = families.linears(base_model(store))
    joined = compose([layer_factors(store, layer) for layer in stack.layers])
    for name, linear in compiled.linears.items():
        terms = [joined[name]] if name in joined else []
        assert torch.equal(linear.weight, fold(exact[name].weight, terms).to(torch.bfloat16))
    rotary = compiled.model.model.rotary_emb.inv_freq
    assert rotary.dtype == torch.float32  # only parameters are rounded


def test_weights_multiply_the_update(store):
    stack = resolve(store, "three", force=True)
    layer = stack.layers[2]
    assert layer.weight == -2.0
    plain = codec.decode(
        store.read(layer.manifest.blob(codec.CONFIG_FILE).digest),
        store.read(layer.manifest.blob(codec.WEIGHTS_FILE).digest),
    )
    for name, found in layer_factors(store, layer).items():
        assert found.scale == pytest.approx(-2.0 * plain[name].scale)


def test_compiling_writes_no_byte_of_the_base(store):
    def hashes():
        blobs = store.manifest(store.bases()[BASE].digest).layers
        return [hashlib.sha256(store.path(b.digest).read_bytes()).hexdigest() for b in blobs]

    before = hashes()
    compiled = compile_stack(store, resolve(store, "three", force=True), dtype=torch.float32)
    for linear in compiled.linears.values():
        linear.weight.data.add_(1)  # even when somebody writes into the copy
    assert hashes() == before


def test_a_base_alone_compiles_to_itself(store):
    compiled = compile_stack(store, resolve(store, BASE), dtype=torch.float32)
    assert torch.equal(logits(compiled.model), logits(base_model(store)))
    assert compiled.pad_id == 3
    prompt = base_format(store, compiled.stack).prompt_ids
    assert prompt.__self__.tokenizer.get_vocab() == compiled.format.tokenizer.get_vocab()


# -- layers that don't fit -------------------------------------------------------------------------


def test_every_misfit_of_every_layer_at_once(own):
    good = random_factors(own)
    names = list(good)
    odd = {
        names[0]: Factors(torch.randn(2, 5), torch.randn(7, 2), 0.5),
        "model.layers.9.mlp.up_proj": good[names[1]],
    }
    layer = put_layer(own, "odd", odd)
    with pytest.raises(LayerError) as caught:
        compile_stack(own, resolve(own, layer.digest))
    text = "\n".join(caught.value.faults)
    assert f"odd: {names[0]}: the layer is for (7, 5)" in text
    assert "odd: model.layers.9.mlp.up_proj: the base has no such linear" in text


def test_not_finite_factors(own):
    factors = random_factors(own)
    name = next(iter(factors))
    factors[name].a_RI[0, 0] = torch.nan
    factors[name].b_OR[0, 0] = torch.inf
    layer = put_layer(own, "nan", factors)
    with pytest.raises(LayerError) as caught:
        compile_stack(own, resolve(own, layer.digest))
    assert len([fault for fault in caught.value.faults if "not finite" in fault]) == 2


def test_a_layer_that_touches_nothing(own):
    layer = put_layer(own, "nothing", random_factors(own))
    manifest = own.manifest(layer.digest)
    weights = own.put_bytes(b"\x02\0\0\0\0\0\0\0{}", "x/y", title=codec.WEIGHTS_FILE)
    config = manifest.blob(codec.CONFIG_FILE)
    from lamina.core.manifests import LayerConfig

    empty = own.put_layer(own.config(manifest, LayerConfig), [config, weights])
    with pytest.raises(LayerError, match="touches no module"):
        compile_stack(own, resolve(own, empty.digest))
    bare = own.put_layer(own.config(manifest, LayerConfig), [config])
    with pytest.raises(LayerError, match="no adapter"):
        compile_stack(own, resolve(own, bare.digest))


# -- damage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("title", [codec.WEIGHTS_FILE, codec.CONFIG_FILE])
def test_a_damaged_layer(own, title, cut):
    stack = resolve(own, "three", force=True)
    damage(own.root / "blobs" / "sha256" / stack.layers[1].manifest.blob(title).digest[7:], cut=cut)
    with pytest.raises(CorruptBlobError, match="don't match"):
        compile_stack(own, stack)


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("title", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_base(own, title, cut):
    compile_stack(own, resolve(own, BASE))  # the folder of links is there and known
    blob = own.manifest(own.bases()[BASE].digest).blob(title)
    damage(own.root / "blobs" / "sha256" / blob.digest[7:], cut=cut)
    for store in (own, Store.open(own.root)):  # this process, which has checked it, and a fresh one
        with pytest.raises(CorruptBlobError, match="don't match"):
            compile_stack(store, resolve(store, BASE))


def test_a_missing_blob_of_the_base(own):
    compile_stack(own, resolve(own, BASE))
    blob = own.manifest(own.bases()[BASE].digest).blob("model.safetensors")
    own.path(blob.digest).unlink()
    with pytest.raises(MissingBlobError):
        compile_stack(own, resolve(own, BASE))


def test_the_folder_of_links_is_made_anew(own):
    directory = base_directory(own, own.bases()[BASE])
    expected = {path.name: path.read_bytes() for path in directory.iterdir()}
    assert "model.safetensors" in expected
    (directory / "config.json").unlink()
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer.json").symlink_to("nowhere")
    again = base_directory(own, own.bases()[BASE])
    assert again == directory
    assert {path.name: path.read_bytes() for path in again.iterdir()} == expected


def test_a_store_that_moved_still_compiles(own, tmp_path):
    compile_stack(own, resolve(own, BASE))
    own.root.rename(tmp_path / "elsewhere")
    moved = Store.open(tmp_path / "elsewhere", create=False)
    assert compile_stack(moved, resolve(moved, "three", force=True)).linears
