"""LoRA files of image tools, both ways, with diffusers itself on the other side."""

import json

import pytest
import safetensors.torch
import torch

from lamina.bases.pipeline import linears
from lamina.core.errors import LayerError, UsageError
from lamina.core.report import Silent
from lamina.flows import adapters, importing
from lamina.flows.painting import sayings
from lamina.lowrank.maths import Factors
from lamina.stack.compile import compile_stack, stored_factors
from lamina.stack.resolve import resolve
from tests.pictures import image_store
from tests.stacks import put_layer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A base and two layers of random factors over it, the text encoder's among them."""
    store = image_store(tmp_path_factory.mktemp("exchange") / "store")
    model = compile_stack(store, resolve(store, "pico"), dtype=torch.float32).pipeline
    parents = ()
    for seed, name in enumerate(("one", "two")):
        layer = put_layer(store, name, factors(model, seed), parents, base="pico")
        parents = (*parents, layer)
    return store


def factors(model, seed):
    chance = torch.Generator().manual_seed(seed)
    return {
        name: Factors(
            torch.randn(2, m.in_features, generator=chance) * m.in_features**-0.5,
            torch.randn(m.out_features, 2, generator=chance) * 0.2,
            0.7,
        )
        for name, m in linears(model).items()
        if name.endswith(("to_q", "to_out.0", "q_proj", "proj_in"))
    }
