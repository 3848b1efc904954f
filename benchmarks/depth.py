"""Depth costs nothing: time of a training step over stacks of 0, 4 and 16 layers.

The three models stand side by side; steps are interleaved and medians compared, so that a noisy
machine weighs on all of them alike. The layers beneath are real layers of random factors.
"""

import statistics
import time

import torch

from benchmarks.common import BASE, Log, emit, home, parser, say
from lamina.bases import families
from lamina.core.manifests import (
    JSON_TYPE,
    SAFETENSORS_TYPE,
    LayerConfig,
    StackedLayer,
)
from lamina.core.recipe import Recipe
from lamina.flows.bases import ensure
from lamina.lowrank import codec
from lamina.lowrank.attach import Attachment
from lamina.lowrank.maths import Factors
from lamina.stack.compile import compile_stack
from lamina.stack.resolve import ResolvedStack, of_descriptor, resolve
from lamina.store.layout import Store
from lamina.tokens.batch import Batch
from lamina.train.job import fresh_factors
from lamina.train.objective import token_losses

DEPTHS = (0, 4, 16)
RANK = 16


def add_layer(store: Store, stack: ResolvedStack, seed: int) -> ResolvedStack:
    """One more layer of random factors on top."""
    compiled = compile_stack(store, stack)
    generator = torch.Generator().manual_seed(seed)
    factors = {
        name: Factors(
            torch.randn(RANK, m.in_features, generator=generator) * 1e-3,
            torch.randn(m.out_features, RANK, generator=generator) * 1e-3,
            2.0,
        )
        for name, m in compiled.linears.items()
    }
    config, weights = codec.encode(
        factors, rank=RANK, alpha=2.0 * RANK, scaling="lora", base=stack.config.base,
        target_modules=families.target_modules(compiled.linears, tuple(factors)),
    )  # fmt: skip
    layer = store.put_layer(
        LayerConfig(
            name=f"random-{seed}", base=stack.config.base, parents=stack.config.layers, rank=RANK,
            alpha=2.0 * RANK, scaling="lora", modules=tuple(factors), recipe=None, data=None,
            parameters=sum(f.parameters for f in factors.values()), origin="imported",
        ),
        [
            store.put_bytes(config, JSON_TYPE, title=codec.CONFIG_FILE),
            store.put_bytes(weights, SAFETENSORS_TYPE, title=codec.WEIGHTS_FILE),
        ],
    )  # fmt: skip
    layers = (*stack.config.layers, StackedLayer(layer=layer.digest))
    return of_descriptor(store, store.put_stack(stack.config.base, layers), label="bench")


def step_of(store: Store, stack: ResolvedStack, batch: Batch):  # noqa: ANN201
    """(a function that runs one training step over the compiled stack, seconds to compile it)."""
    began = time.perf_counter()
    compiled = compile_stack(store, stack)
    seconds = time.perf_counter() - began
    attachment = Attachment(
        compiled.model, fresh_factors(compiled.linears, Recipe(rank=RANK)), compiled.linears
    )
    optimiser = torch.optim.AdamW([attachment.flat], fused=True)

    def step() -> float:
        began = time.perf_counter()
        attachment.zero_grad()
        token_losses(compiled.model, batch).mean().backward()
        optimiser.step()
        return time.perf_counter() - began

    return step, seconds


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__)
    arguments.add_argument("--repeats", type=int, default=9)
    given = arguments.parse_args()
    with home(given.home) as directory:
        store = Store.open(directory)
        ensure(store, BASE, Log())
        stacks = {0: resolve(store, BASE)}
        for depth in range(1, max(DEPTHS) + 1):
            stacks[depth] = add_layer(store, stacks[depth - 1], depth)
            say(f"layer {depth}")
        ids = torch.randint(5, 49000, (8, 256), generator=torch.Generator().manual_seed(0))
        positions = torch.arange(8 * 256).view(8, 256)[:, 128:-1].reshape(-1)
        batch = Batch(
            ids=ids, positions=positions, targets=ids.view(-1)[positions + 1],
            lengths=torch.full((8,), 256), row_of_target=positions // 256,
        )  # fmt: skip
        compile_stack(store, stacks[16])  # warm the file cache
        made = {depth: step_of(store, stacks[depth], batch) for depth in DEPTHS}
        steps = {depth: step for depth, (step, _) in made.items()}
        times: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
        for repeat in range(given.repeats + 1):
            for depth, step in steps.items():
                seconds = step()
                if repeat:  # the first is a warm-up
                    times[depth].append(seconds)
    medians = {depth: statistics.median(values) for depth, values in times.items()}
    ratios = [b / a for a, b in zip(times[0], times[16], strict=True)]
    row = {
        "ratio_16_0": round(statistics.median(ratios), 4),
        "ratio_4_0": round(medians[4] / medians[0], 4),
        **{f"compile_{depth}_s": round(seconds, 2) for depth, (_, seconds) in made.items()},
        **{f"step_{depth}_s": round(value, 3) for depth, value in medians.items()},
        "tokens": 8 * 256,
        "repeats": given.repeats,
    }
    emit("depth", row, keep=given.keep)


if __name__ == "__main__":
    main()
