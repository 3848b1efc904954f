"""The pass in C++: what transformers says, whatever shares the batch, to the bit."""

import copy
import random

import pytest
import torch

from lamina.core.errors import LayerError
from lamina.lowrank.maths import Factors
from lamina.serve import native
from lamina.serve.batch import BLOCK
from lamina.serve.native import NativeDecoder, why_not
from lamina.serve.packing import PANEL, UPDATE_WORDS
from tests.serve.bases import (
    PLAIN,
    Reader,
    model_of,
    own_logits,
    random_layer,
    tokens,
)


@pytest.fixture(scope="session", params=PLAIN)
def family(request):
    return request.param


@pytest.fixture(scope="session")
def folder(tmp_path_factory, family):
    return tmp_path_factory.mktemp("served") / family


@pytest.fixture
def model(folder, family):
    made = model_of(folder, family=family)
    if reason := why_not(made):
        pytest.skip(reason)
    return made


def error(found_V, exact_V):
    return float((found_V - exact_V).norm() / exact_V.norm())


@pytest.fixture
def check(model, folder):
    """Reads `ids` under layers: as near to float32 as transformers' own bfloat16 is."""
    exact = model_of(folder, dtype=torch.float32)

    def near(ids, layers, **options):
        texts = [tokens(seed, 9 + 3 * seed) + ids for seed in range(8)]
        theirs, wanted, base = (
            torch.stack([own_logits(m, text, some) for text in texts])
            for m, some in ((model, layers), (exact, layers), (exact, []))
        )
        decoder = NativeDecoder(copy.deepcopy(model), **options)
        reader, loaded = Reader(decoder), [decoder.load(layer) for layer in layers]
        under = [reader.sequence(text, loaded) for text in texts]
        found = reader.read(*((sequence, len(sequence.ids)) for sequence in under))
        assert error(found, wanted) < 1.2 * error(theirs, wanted)
        if layers:  # or they would not have been tested
            assert error(wanted, base) > 5 * error(found, wanted)

    return near


def test_logits_are_as_near_to_float32_as_those_of_transformers(model, check):
    check(tokens(0, 45), [])
    check(tokens(0, 45), [random_layer(model, 1), random_layer(model, 2, rank=8)])


@pytest.mark.parametrize("bits", [16, 8])
def test_a_rows_numbers_do_not_depend_on_the_batch(model, bits):
    layers = [random_layer(model, seed, rank=1 + seed) for seed in range(4)]
    decoder = NativeDecoder(model, layer_bits=bits)
    a, b, c, d = (decoder.load(layer) for layer in layers)
    stacks = [(), (a,), (a, b), (a, c), (d,), (a, b, d), (), (a, b)]
    alone = []
    for seed, stack in enumerate(stacks):
        reader = Reader(decoder, 8)
        ids = tokens(seed, 30 + 7 * seed)
        alone.append(reader.read((reader.sequence(ids, stack), len(ids)))[0])
    reader = Reader(decoder, 64)
    sequences = [
        reader.sequence(tokens(seed, 30 + 7 * seed), stack) for seed, stack in enumerate(stacks)
    ]
    together = reader.read(*((s, len(s.ids)) for s in sequences))
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


def test_however_a_prompt_is_cut(model):
    layer = random_layer(model, 3)
    decoder = NativeDecoder(model)
    loaded = decoder.load(layer)
    reader = Reader(decoder)
    whole = reader.sequence(tokens(1, 100), [loaded])
    expected = reader.read((whole, 100))[0]
    chance = random.Random(0)
    for _ in range(4):
        reader = Reader(decoder)
        sequence, other = reader.sequence(tokens(1, 100), [loaded]), reader.sequence(tokens(2, 90))
        logits = None
        while sequence.past < 100:
            count = min(chance.choice([1, 1, 3, 13, 32, 40]), 100 - sequence.past)
            steps = [(sequence, count)]
            if other.past < 90 and chance.random() < 0.5:
                steps.insert(0, (other, min(chance.choice([1, 17]), 90 - other.past)))
            logits = reader.read(*steps)
        assert torch.equal(logits[-1], expected)


def test_one_thread_or_two(model, folder, family):
    layer = random_layer(model, 3)
    found = []
    for threads in (1, 2):
        decoder = NativeDecoder(model_of(folder, family=family), threads=threads)
        reader = Reader(decoder)
        sequence = reader.sequence(tokens(1, 70), [decoder.load(layer)])
        found.append(reader.read((sequence, 70)))
    assert torch.equal(*found)


@pytest.mark.parametrize("only", ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj",
                                  "down_proj", "layers.1."])  # fmt: skip
def test_layers_on_some_linears_only(model, check, only):
    check(tokens(0, 20), [random_layer(model, 5, only=only, rank=6, scale=1.5)])


def test_a_weight_scales_what_a_layer_adds(model, check):
    layer = {name: f.weighted(0.25) for name, f in random_layer(model, 5, scale=2.0).items()}
    check(tokens(0, 20), [layer])


def test_layers_in_bytes_cost_less_than_bfloat16_does(model, check):
    """Layers a tenth as strong as the weights: trained ones change less. What bytes round is then
    less than what bfloat16 rounds of everything else."""
    layers = [random_layer(model, seed, rank=5, scale=0.1) for seed in (1, 2)]
    check(tokens(0, 45), layers, layer_bits=8)


def test_layers_in_bytes_with_a_member_missing_and_wide_ranks(model, check):
    check(tokens(0, 20), [random_layer(model, 5, only="v_proj", rank=19, scale=0.1)], layer_bits=8)
    check(
        tokens(0, 20), [random_layer(model, 5, only="up_proj", rank=70, scale=0.05)], layer_bits=8
    )


def test_bytes_take_half_the_memory(model):
    layer = random_layer(model, 1, rank=16)
    sizes = [
        NativeDecoder(copy.deepcopy(model), layer_bits=bits).load(layer).bytes for bits in (16, 8)
    ]
    assert sizes[1] < 0.6 * sizes[0]


def test_ranks_beyond_a_tile(model, check):
    check(tokens(0, 20), [random_layer(model, 5, rank=70, scale=0.2)])


def test_what_lies_in_used_blocks_is_not_seen(model):
    decoder = NativeDecoder(model)
    reader = Reader(decoder, 4)
    fresh = reader.read((reader.sequence(tokens(0, 40)), 40))
    again = Reader(decoder, 4)
    again.decoder._pool[1].fill_(0x7F7F7F7F)  # huge, but finite: as another's values might be
    assert torch.equal(fresh, again.read((again.sequence(tokens(0, 40)), 40)))


def test_a_layer_for_other_shapes_is_refused(model):
    decoder = NativeDecoder(model)
    wrong = {"model.layers.0.mlp.up_proj": Factors(torch.zeros(2, 8), torch.zeros(8, 2), 1.0)}
    with pytest.raises(LayerError, match="the base has"):
        decoder.load(wrong)
    with pytest.raises(LayerError, match="touches no module"):
        decoder.load({})


def test_the_constants_are_those_of_the_source():
    source = (native.__file__.rpartition("serve")[0]) + "kernels/decode.cpp"
    with open(source, encoding="utf-8") as file:
        text = file.read()
    named = {
        "TILE": native.TILE,
        "PART": native.PART,
        "COLS": PANEL,
        "BLOCK": BLOCK,
        "QUERIES": native.QUERIES,
        "LINEARS": len(native.GROUPS),
    }
    for name, value in named.items():
        assert f"const long {name} = {value}" in text
    assert f"UPDATE_WORDS = {UPDATE_WORDS};" in text
