"""A store with a pico base, and layers of random factors on it without any training."""

from collections.abc import Sequence
from pathlib import Path

import torch

from lamina.bases import families
from lamina.bases.load import load
from lamina.core.manifests import (
    JSON_TYPE,
    SAFETENSORS_TYPE,
    Descriptor,
    LayerConfig,
    StackedLayer,
)
from lamina.core.names import Name
from lamina.core.report import Silent
from lamina.flows.bases import pull
from lamina.lowrank import codec
from lamina.lowrank.maths import Factors
from lamina.stack.compile import base_directory
from lamina.stack.resolve import over_base
from lamina.store.layout import Store
from lamina.store.refs import ANYTHING
from tests.pico import pico_base

BASE = "pico"


def new_store(root: Path, *, name: str = BASE, **pico) -> Store:
    """A store with one pico base called `name`."""
    store = Store.open(root)
    source = pico_base(root.parent / f"{root.name}-{name}", **{"hidden": 32} | pico)
    pull(store, str(source), name, Silent())
    return store


def base_model(store: Store, dtype: torch.dtype = torch.float32, name: str = BASE):
    """The base by itself, as a model in memory."""
    return load(base_directory(store, store.bases()[name]), dtype=dtype).model


def random_factors(
    store: Store, *, rank: int = 2, seed: int = 0, only: str = "", scale: float = 0.5
) -> dict[str, Factors]:
    """Factors for every linear of the base whose name ends in `only`."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: Factors(
            torch.randn(rank, m.in_features, generator=generator) * m.in_features**-0.5,
            torch.randn(m.out_features, rank, generator=generator) * 0.3,
            scale,
        )
        for name, m in families.linears(base_model(store)).items()
        if name.endswith(only)
    }


def put_layer(
    store: Store,
    name: str,
    factors: dict[str, Factors],
    parents: Sequence[StackedLayer] = (),
    **config,
) -> Descriptor:
    """Store factors as a layer over `parents`, kept as a root."""
    some = next(iter(factors.values()))
    text, weights = codec.encode(
        factors,
        rank=some.rank,
        alpha=some.scale * some.rank,
        scaling="lora",
        target_modules=tuple(factors),
        base="pico",
    )
    blobs = [
        store.put_bytes(text, JSON_TYPE, title=codec.CONFIG_FILE),
        store.put_bytes(weights, SAFETENSORS_TYPE, title=codec.WEIGHTS_FILE),
    ]
    values = {
        "name": name,
        "base": over_base(store, store.bases()[BASE], label=BASE).config.base,
        "parents": tuple(parents),
        "rank": some.rank,
        "alpha": some.scale * some.rank,
        "scaling": "lora",
        "modules": tuple(factors),
        "parameters": sum(f.parameters for f in factors.values()),
    }
    return store.put_layer(LayerConfig(**values | config), blobs)


def put_stack(store: Store, name: str, count: int, *, weights: Sequence[float] = ()):
    """A named stack of `count` random layers, each trained over those beneath; the layers."""
    stacked: list[StackedLayer] = []
    for number in range(count):
        factors = random_factors(store, rank=1 + number % 3, seed=number)
        if number % 2:  # every second layer touches only some linears
            factors = {k: f for k, f in factors.items() if k.endswith(("q_proj", "down_proj"))}
        layer = put_layer(store, f"{name}{number}", factors, stacked)
        weight = weights[number] if weights else 1.0
        stacked.append(StackedLayer(layer=layer.digest, weight=weight))
    stack = store.put_stack(over_base(store, store.bases()[BASE], label=BASE).config.base, stacked)
    store.tag(Name(name), stack, expected=ANYTHING)
    return stacked


def damage(path: Path, *, cut: bool = False) -> None:
    """Flip a byte in the middle of a file, or cut its second half off."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data[: len(data) // 2] if cut else data)
