"""Stacks of any height and size, made of random bytes: what moves cares for no tensor."""

import random

from lamina.core.evidence import COST_TYPE, CostEvidence
from lamina.core.manifests import StackedLayer
from lamina.core.names import Name
from tests.store.make import IDENTITY_OF_BASE, put_base, put_layer


def tall(store, words, *, size=1000, name="tall"):
    """A named stack of layers over each other, each with its cost on record."""
    store.tag_base("pico", put_base(store))
    stacked = ()
    for number, word in enumerate(words):
        layer = put_layer(store, word, size=size, parents=stacked, payload=noise(word, size))
        store.put_evidence(COST_TYPE, cost(number), layer)
        stacked = (*stacked, StackedLayer(layer=layer.digest))
    stack = store.put_stack(IDENTITY_OF_BASE, stacked)
    current = store.names().get(name, {}).get("latest")
    store.move(name, stack, expected=current.digest if current else None)
    return store.resolve(Name(name))


def noise(word, size):
    """The same bytes for the same word."""
    return random.Random(word).randbytes(size)


def cost(number):
    return CostEvidence(
        created=f"2026-01-01T00:00:{number % 60:02d}+00:00",
        seconds=1.0,
        steps=1,
        best_step=1,
        tokens=1,
        tokens_per_second=1.0,
        peak_bytes=1,
        hardware="none",
        versions={},
        layer_bytes=1,
        base_bytes=1,
    )
