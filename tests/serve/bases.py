"""Pico models and random layers for the decoders, and what transformers says of them."""

import copy

import torch

from lamina.bases.families import linears
from lamina.bases.load import load
from lamina.lowrank.attach import attached
from lamina.lowrank.maths import Factors, compose
from lamina.serve.batch import BLOCK, Span
from tests.pico import pico_base

VOCAB = 416  # a multiple of 32 and more than the tokenizer needs
PLAIN = ("llama", "mistral", "qwen2", "qwen3")


def model_of(folder, *, dtype=torch.bfloat16, **pico):
    """A pico model whose heads are wide enough for the kernels."""
    if not folder.exists():
        if pico.get("family") == "mistral":
            pico |= {"sliding_window": None}
        pico_base(folder, **{"hidden": 128, "vocab": VOCAB, "layers": 2} | pico)
    return load(folder, dtype=dtype).model


def random_layer(model, seed, *, rank=3, only="", scale=0.7):
    """Factors for the linears whose names contain `only`: strong enough to change what comes."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: Factors(
            torch.randn(rank, m.in_features, generator=generator) * m.in_features**-0.5,
            torch.randn(m.out_features, rank, generator=generator) * 0.3,
            scale,
        )
        for name, m in linears(model).items()
        if only in name
    }


def own_logits(model, ids, layers):
    """(V,) float32: transformers' logits after the last of `ids`, layers attached."""
    model = copy.deepcopy(model)
    with torch.inference_mode():
        if not layers:
            return model(input_ids=torch.tensor([ids])).logits[0, -1].float()
        with attached(model, compose(layers), linears(model)):
            return model(input_ids=torch.tensor([ids])).logits[0, -1].float()


class Reader:
    """Reads sequences with a decoder, giving each its own blocks."""

    def __init__(self, decoder, blocks=64):
        decoder.reserve(blocks)
        self.decoder, self._next = decoder, 0

    def sequence(self, ids, layers=()):
        need = -(-len(ids) // BLOCK)
        blocks = list(range(self._next, self._next + need))[::-1]  # any order will do
        self._next += need
        return _Read(ids, blocks, layers)

    def read(self, *steps):
        """Each step: (sequence, count). The logits of those read to the end, as copies."""
        spans = []
        for sequence, count in steps:
            end = sequence.past + count
            ids = sequence.ids[sequence.past : end]
            wanted = end == len(sequence.ids)
            blocks = sequence.blocks[: -(-end // BLOCK)]
            spans.append(Span(ids, sequence.past, blocks, sequence.layers, wanted))
            sequence.past = end
        return self.decoder.run(spans).clone()


class _Read:
    def __init__(self, ids, blocks, layers):
        self.ids, self.blocks, self.layers, self.past = ids, blocks, layers, 0


def tokens(seed, count):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, VOCAB, (count,), generator=generator).tolist()
