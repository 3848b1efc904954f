"""Bases with packed weights: their own identity, their bytes, their products, other readers."""

import hashlib
import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from lamina.bases import int8, nf4
from lamina.bases.convert import pull
from lamina.bases.families import linears
from lamina.bases.identity import describe
from lamina.bases.load import load
from lamina.bases.quantise import quantise
from lamina.bases.quantised import QuantisedLinear, weight_bytes
from lamina.bases.shell import shell
from lamina.bases.sources import parse_source
from lamina.core.errors import BaseError, MissingPartError
from tests.bases.others import theirs
from tests.pico import FAMILIES, pico_base
from tests.tolerance import TOLERANCE

KINDS = ("nf4", "int8")
PACKINGS = {"nf4": nf4, "int8": int8}
PROMPT = torch.arange(8, 40)[None]
BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32


def said_nothing(_):
    pass


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    root = tmp_path_factory.mktemp("plain")
    source = pico_base(root / "source", dtype=BFLOAT16)
    return pull(parse_source(str(source)), root / "work", progress=said_nothing)


@pytest.fixture(scope="module")
def made(plain, tmp_path_factory):
    root = tmp_path_factory.mktemp("packed")
    return {kind: packed(plain, kind, root / kind) for kind in KINDS}


def packed(plain, kind, target):
    return quantise(
        plain.directory, plain.config, plain.source, kind, target, progress=said_nothing
    )


def hashes(directory):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.iterdir()}


@torch.inference_mode()
def logits(model):
    return model(input_ids=PROMPT).logits.float()


# -- identity and bytes ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_base_of_its_own(plain, made, kind):
    config = made[kind].config
    assert config.identity != plain.config.identity
    assert config.made_from == plain.config.identity
    assert config.quantised == kind
    assert config.parameters == plain.config.parameters
    assert (config.tokenizer, config.template) == (plain.config.tokenizer, plain.config.template)
    assert made["nf4"].config.identity != made["int8"].config.identity


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_base_gives_the_same_bytes_whatever_the_threads(plain, made, kind, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again = packed(plain, kind, tmp_path / "again")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert hashes(again.directory) == hashes(made[kind].directory)
    assert again.config == made[kind].config


@pytest.mark.parametrize("kind", KINDS)
def test_identity_is_over_the_packed_bytes(made, kind, tmp_path):
    directory = shutil.copytree(made[kind].directory, tmp_path / "base")
    tensors = load_file(directory / "model.safetensors")
    name = f"model.layers.1.mlp.up_proj.{PACKINGS[kind].SUFFIXES[0]}"
    tensors[name].view(torch.uint8)[0, 0] ^= 1
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    other = describe(directory, template_origin="own", licence=None)
    assert other.identity != made[kind].config.identity


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_packed_keeps_its_bytes(plain, made, kind):
    before = load_file(plain.directory / "model.safetensors")
    after = load_file(made[kind].directory / "model.safetensors")
    kept = set(before) & set(after) - {n for n in before if n.endswith("proj.weight")}
    assert {"model.embed_tokens.weight", "model.norm.weight"} <= kept
    assert all(torch.equal(before[name], after[name]) for name in kept)
    shrunk = sum(t.nbytes for n, t in after.items() if n not in kept)
    whole = sum(t.nbytes for n, t in before.items() if n not in kept)
    assert shrunk < whole * {"nf4": 0.45, "int8": 0.55}[kind]  # pico linears carry much overhead


@pytest.mark.parametrize("kind", KINDS)
def test_no_byte_is_written_by_use(made, kind):
    before = hashes(made[kind].directory)
    model = load(made[kind].directory, dtype=FLOAT32).model
    for buffer in model.buffers():
        buffer.zero_()
    for parameter in model.parameters():
        parameter.data.zero_()
    assert hashes(made[kind].directory) == before


@pytest.mark.parametrize("kind", KINDS)
def test_shards_are_cut_between_tensors_and_load_the_same(plain, made, kind, tmp_path, monkeypatch):
    from lamina.bases import quantise as module
    from lamina.bases.shards import write_shards

    def small(*arguments):
        write_shards(*arguments, limit=20_000)

    monkeypatch.setattr(module, "write_shards", small)
    cut = packed(plain, kind, tmp_path / "cut")
    files = sorted(cut.directory.glob("model-*.safetensors"))
    assert len(files) > 2
    assert cut.config == made[kind].config
    index = json.loads((cut.directory / "model.safetensors.index.json").read_text())
    tensors = {name: t for file in files for name, t in load_file(file).items()}
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    loaded, whole = (load(m.directory, dtype=FLOAT32).model for m in (cut, made[kind]))
    assert torch.equal(logits(loaded), logits(whole))


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_folder_comes_back_as_the_same_base(made, kind, tmp_path):
    again = pull(parse_source(str(made[kind].directory)), tmp_path, progress=said_nothing)
    assert again.config == made[kind].config.model_copy(update={"made_from": None})
    assert again.config.identity == made[kind].config.identity
    assert hashes(again.directory) == hashes(made[kind].directory)
    once_more = pull(parse_source(str(made[kind].directory)), tmp_path, progress=said_nothing)
    assert once_more.config == again.config


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_folder_that_lacks_tensors_is_refused(made, kind, tmp_path):
    directory = shutil.copytree(made[kind].directory, tmp_path / "base")
    tensors = load_file(directory / "model.safetensors")
    gone = [f"model.layers.{n}.mlp.up_proj.{PACKINGS[kind].SUFFIXES[1]}" for n in (0, 1)]
    for name in gone:
        del tensors[name]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseError) as caught:
        pull(parse_source(str(directory)), tmp_path / "work", progress=said_nothing)
    assert caught.value.faults == tuple(f"{name}: is not there" for name in gone)


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT32])
@pytest.mark.parametrize("kind", KINDS)
def test_other_readers_see_the_same_model(made, kind, dtype):
    ours = logits(load(made[kind].directory, dtype=dtype).model)
    other = logits(theirs(made[kind].directory, dtype))
    scale = other.abs().max()
    torch.testing.assert_close(ours / scale, other / scale, **TOLERANCE[dtype])


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_near_those_it_was_made_from(plain, made, kind):
    before = linears(load(plain.directory, dtype=FLOAT32).model)
    after = linears(load(made[kind].directory, dtype=FLOAT32).model)
    limit = {"nf4": 0.1, "int8": 0.01}[kind]  # of the norm; normal weights lose 9.1% and 0.8%
    for name, linear in after.items():
        assert isinstance(linear, QuantisedLinear)
        difference = (linear.weight - before[name].weight).norm() / before[name].weight.norm()
        assert 0 < difference < limit, name


def test_int8_is_the_nearest_of_its_codes():
    weight = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    weight[4, 7] = 100  # an outlier costs its own row only
    packed = int8.pack(weight)
    found = int8.unpacker(packed, (24, 40), torch.float64)(None)
    scale = packed[int8.SCALE].double()
    assert ((found - weight.double()).abs() <= scale / 2 * (1 + 1e-6)).all()
    assert torch.equal(found[3], torch.zeros(40, dtype=torch.float64))
    rows = [row for row in range(24) if row not in (3, 4)]
    assert (scale[rows] < 0.05).all()


@pytest.mark.parametrize("kind", KINDS)
def test_unpacking_into_a_slice_is_unpacking(kind):
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    unpack = PACKINGS[kind].unpacker(PACKINGS[kind].pack(weight), (32, 64), BFLOAT16)
    whole = torch.zeros(96, 64, dtype=BFLOAT16)
    unpack(whole[32:64])
    assert torch.equal(whole[32:64], unpack(None))
    assert not whole[:32].any()
    assert not whole[64:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_product_and_its_gradient_are_those_of_the_weight(made, kind):
    linear = linears(load(made[kind].directory, dtype=FLOAT32).model)["model.layers.0.mlp.up_proj"]
    generator = torch.Generator().manual_seed(1)
    o, i = linear.out_features, linear.in_features
    terms = [
        (torch.randn(r, i, generator=generator), torch.randn(o, r, generator=generator))
        for r in (2, 3)
    ]
    plain = linear.weight
    for a_RI, b_OR in terms:
        linear.add(a_RI, b_OR)
    whole = plain + sum(b @ a for a, b in terms)
    torch.testing.assert_close(linear.weight, whole, **TOLERANCE[FLOAT32])
    assert torch.equal(linear.supplied(), plain)
    x = torch.randn(2, 5, i, generator=generator, requires_grad=True)
    x_again = x.detach().clone().requires_grad_()
    y, expected = linear(x), torch.nn.functional.linear(x_again, whole)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    g = torch.randn(y.shape, generator=generator)
    y.backward(g)
    expected.backward(g)
    torch.testing.assert_close(x.grad, x_again.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_biases_stay(tmp_path, kind):
    source = pico_base(tmp_path / "source", family="qwen2", dtype=BFLOAT16)
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.bias"
    tensors[name] = torch.linspace(-1, 1, len(tensors[name])).bfloat16()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    plain = pull(parse_source(str(source)), tmp_path / "work", progress=said_nothing)
    made = packed(plain, kind, tmp_path / kind)
    model = load(made.directory, dtype=BFLOAT16).model
    assert torch.equal(linears(model)["model.layers.0.self_attn.q_proj"].bias, tensors[name])
    torch.testing.assert_close(
        logits(model), logits(theirs(made.directory, BFLOAT16)), rtol=5e-2, atol=0.2
    )


def test_weight_bytes_count_what_is_stored(plain, made):
    whole = weight_bytes(load(plain.directory, dtype=BFLOAT16).model)
    assert whole == 2 * plain.config.parameters
    for kind in KINDS:
        found = weight_bytes(load(made[kind].directory, dtype=BFLOAT16).model)
        stored = load_file(made[kind].directory / "model.safetensors")
        assert found == sum(t.nbytes for t in stored.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shell_has_the_models_own_tables(tmp_path, family):
    directory = pico_base(tmp_path / family, family=family)
    empty, whole = shell(directory, dtype=BFLOAT16), load(directory, dtype=BFLOAT16).model
    assert all(p.device.type == "meta" for p in empty.parameters() if p.ndim == 2)
    assert not any(p.requires_grad for p in empty.parameters())
    tables = dict(whole.named_buffers())
    assert set(dict(empty.named_buffers())) == set(tables)
    for name, buffer in empty.named_buffers():
        assert buffer.dtype == tables[name].dtype
        assert torch.equal(buffer, tables[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_packed(tmp_path, family):
    source = pico_base(tmp_path / "source", family=family, dtype=BFLOAT16)
    plain = pull(parse_source(str(source)), tmp_path / "work", progress=said_nothing)
    made = packed(plain, "int8", tmp_path / "made")
    ours, other = load(made.directory, dtype=FLOAT32).model, theirs(made.directory)
    scale = logits(other).abs().max()
    torch.testing.assert_close(logits(ours) / scale, logits(other) / scale, **TOLERANCE[FLOAT32])


# -- refusals --------------------------------------------------------------------------------------


def test_packing_twice_is_refused(made, tmp_path):
    with pytest.raises(BaseError, match="quantised already"):
        packed(made["int8"], "nf4", tmp_path / "twice")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_missing_and_misshapen_tensors_are_all_named(made, kind, tmp_path):
    directory = shutil.copytree(made[kind].directory, tmp_path / "base")
    tensors = load_file(directory / "model.safetensors")
    first = PACKINGS[kind].SUFFIXES[0]
    del tensors[f"model.layers.0.mlp.up_proj.{first}"]
    for suffix in PACKINGS[kind].SUFFIXES:
        tensors[f"model.layers.1.mlp.up_proj.{suffix}"] = tensors[
            f"model.layers.1.self_attn.k_proj.{suffix}"
        ].clone()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseError) as caught:
        load(directory, dtype=FLOAT32)
    faults = "\n".join(caught.value.faults)
    assert "layers.0.mlp.up_proj: has no" in faults
    assert "layers.1.mlp.up_proj: an" in faults or "layers.1.mlp.up_proj: a nf4" in faults
    assert len(caught.value.faults) == 2


def test_other_ways_of_quantising_are_refused(made, tmp_path):
    directory = shutil.copytree(made["nf4"].directory, tmp_path / "base")
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] |= {"bnb_4bit_quant_type": "fp4"}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseError, match="lamina does not read"):
        load(directory, dtype=FLOAT32)
    with pytest.raises(BaseError, match="take the plain model"):
        pull(parse_source(str(directory)), tmp_path / "work", progress=said_nothing)


def test_numbers_that_are_not_finite_are_refused(plain, tmp_path):
    directory = shutil.copytree(plain.directory, tmp_path / "base")
    tensors = load_file(directory / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][1, 2] = torch.inf
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseError, match="not finite"):
        quantise(directory, plain.config, "it", "nf4", tmp_path / "out", progress=said_nothing)
    assert not (tmp_path / "out").exists()


def test_without_bitsandbytes_the_extra_is_named(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(MissingPartError, match=r"lamina\[quantised\]"):
        load(made["nf4"].directory, dtype=FLOAT32)
    load(made["int8"].directory, dtype=FLOAT32)  # needs no library


@pytest.mark.slow
def test_importing_bitsandbytes_asks_the_hub_for_nothing(tmp_path):
    import subprocess

    (tmp_path / "kernels.py").write_text("def get_kernel(*a, **k): raise SystemExit('asked')\n")
    code = (
        "from lamina.bases.nf4 import pack\nimport sys, torch\npack(torch.randn(8, 64))\n"
        "assert 'kernels' not in sys.modules\nimport kernels\nprint(kernels.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{tmp_path}:{':'.join(p for p in sys.path if p)}", "PATH": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "kernels.py")
    assert done.stderr == ""
