"""The pass through transformers' modules: any family, and what each row gets alone."""

import pytest
import torch

from lamina.core.errors import LayerError
from lamina.serve.generic import GenericDecoder
from tests.serve.bases import Reader, model_of, own_logits, random_layer, tokens
from tests.tolerance import TOLERANCE

FAMILIES = {
    "llama": {},
    "qwen3": {},
    "mistral": {"sliding_window": 16},
    "gemma3_text": {"sliding_window": 16, "query_pre_attn_scalar": 32},
    "phi3": {},
}


@pytest.fixture(scope="session", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def model(tmp_path_factory, family):
    folder = tmp_path_factory.getbasetemp() / f"generic-{family}"
    return model_of(folder, dtype=torch.float32, family=family, **FAMILIES[family])


def test_mixed_stacks_in_chunks_are_what_transformers_says(model):
    layers = [random_layer(model, seed, rank=2 + seed, scale=0.4) for seed in range(3)]
    stacks = [[], [0], [0, 1], [0, 2], [1], [0, 1]]
    texts = [tokens(seed, 21 + 11 * seed) for seed in range(len(stacks))]
    wanted = [
        own_logits(model, ids, [layers[i] for i in stack])
        for ids, stack in zip(texts, stacks, strict=True)
    ]
    decoder = GenericDecoder(model)
    loaded = [decoder.load(layer) for layer in layers]
    reader = Reader(decoder)
    sequences = [
        reader.sequence(ids, [loaded[i] for i in stack])
        for ids, stack in zip(texts, stacks, strict=True)
    ]
    reader.read(*((s, 13) for s in sequences[::2]))
    reader.read(*((s, len(s.ids) - s.past - 1) for s in sequences))
    found = reader.read(*((s, 1) for s in sequences))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, **TOLERANCE[torch.float32])
    assert (wanted[2] - own_logits_of_base(decoder, texts[2])).norm() > 0.1 * wanted[2].norm()


def own_logits_of_base(decoder, ids):
    reader = Reader(decoder)
    return reader.read((reader.sequence(ids), len(ids)))[0]


def test_a_layer_for_other_shapes_is_refused(model):
    with pytest.raises(LayerError, match="touches no module"):
        GenericDecoder(model).load({})
