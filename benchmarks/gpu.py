"""The training step on a GPU at several sizes, beside PEFT's: tokens a second, share of the peak.

Models of llama's shape with random weights (speed does not depend on them) at the sizes of 135M, 1B
and 8B parameters; packed rows of random tokens, half of them supervised; rank 16 on all linears.
`lamina` runs its fused decoder; `peft` PEFT's layers in transformers' model with SDPA, the same
rows, all logits, as TRL's trainer runs them. `mfu`: useful arithmetic a second (4 x the linears'
parameters a token, 4 x the head's a supervised one) over the fastest bfloat16 product measured in
the same run. `peak_bytes`: the most that torch held on the GPU.
"""

import time
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.common import emit, parser, say
from lamina.bases import families
from lamina.core.recipe import Recipe
from lamina.lowrank.attach import Attachment
from lamina.tokens.batch import Batch
from lamina.train.fused import fuse
from lamina.train.job import fresh_factors
from lamina.train.objective import token_losses

RANK, RATE = 16, 3e-4


class Shape(NamedTuple):
    """A model of llama's kind."""

    hidden: int
    inner: int
    layers: int
    heads: int
    keys: int
    vocabulary: int
    tokens: int
    """In one step."""
    row: int
    """Tokens of a row."""


SHAPES = {
    "pico": Shape(64, 128, 2, 2, 1, 256, 64, 16),
    "135m": Shape(576, 1536, 30, 9, 3, 49152, 16384, 512),
    "1b": Shape(2048, 8192, 16, 32, 8, 128256, 8192, 512),
    "8b": Shape(4096, 14336, 32, 32, 8, 128256, 8192, 1024),
}


def model_of(shape: Shape, device: str) -> Any:
    """Random weights in bfloat16, made where they are used."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.inner,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.keys, tie_word_embeddings=shape.hidden < 4096,
        max_position_embeddings=4096,
    )  # fmt: skip
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.eval().requires_grad_(False)


def batch_of(shape: Shape) -> Batch:
    """Rows of one length, the second half of each supervised."""
    rows = shape.tokens // shape.row
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(shape.vocabulary, (rows, shape.row), generator=generator)
    at_BT = torch.arange(rows)[:, None] * shape.row + torch.arange(shape.row // 2, shape.row)
    return Batch(
        ids=ids_BT,
        positions=(at_BT - 1).flatten(),
        targets=ids_BT.flatten()[at_BT.flatten()],
        lengths=torch.full((rows,), shape.row),
        row_of_target=torch.arange(rows).repeat_interleave(at_BT.shape[1]),
    )


def lamina(model: nn.Module, batch: Batch) -> Any:
    """One step of the loop's own kind."""
    linears = families.linears(model)
    attachment = Attachment(model, fresh_factors(linears, Recipe(rank=RANK)), linears)
    decoder, why = fuse(model)
    assert decoder is not None, why
    say(f"kernels: {decoder.kernels}")
    optimiser = torch.optim.AdamW([attachment.flat], lr=RATE, fused=True)

    def step() -> None:
        attachment.zero_grad()
        token_losses(decoder, batch).mean().backward()
        torch.nn.utils.clip_grad_norm_([attachment.flat], 1.0)
        optimiser.step()

    return step


def peft(model: nn.Module, batch: Batch) -> Any:
    """PEFT's layers, all logits."""
    from peft import LoraConfig, get_peft_model

    found: Any = get_peft_model(
        model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
    )
    parameters = [p for p in found.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=RATE, fused=True)
    device = parameters[0].device
    ids, labels = batch.ids.to(device), torch.full_like(batch.ids, -100)
    labels.view(-1)[batch.positions + 1] = batch.targets
    labels = labels.to(device)

    def step() -> None:
        optimiser.zero_grad()
        found(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()

    return step


def seconds(step: Any, device: str, steps: int) -> float:
    """Median time of a step, after three to warm up."""
    times = []
    for number in range(steps + 3):
        _wait(device)
        began = time.perf_counter()
        step()
        _wait(device)
        if number >= 3:
            times.append(time.perf_counter() - began)
    return median(times)


def peak_rate(device: str, size: int) -> float:
    """Operations a second of the fastest of three bfloat16 products of this size."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: a @ b, device, 5) for _ in range(3))


def useful(model: nn.Module, batch: Batch) -> float:
    """Operations of one step that a frozen base cannot do without."""
    inside = sum(linear.weight.numel() for linear in families.linears(model).values())
    head = families.head(model).weight.numel()
    return 4.0 * (inside * int(batch.lengths.sum()) + head * len(batch.targets))


def measured(shape: Shape, device: str, steps: int, rate: float) -> dict[str, Any]:
    """Both contestants on one shape, each with a model of its own."""
    batch, row = batch_of(shape), {}
    for name, contestant in {"lamina": lamina, "peft": peft}.items():
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        model = model_of(shape, device)
        work = useful(model, batch)
        took = seconds(contestant(model, batch), device, steps)
        row[name] = {
            "tokens_per_second": round(shape.tokens / took, 1),
            "mfu": round(work / took / rate, 4),
            "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
        }
        say(f"{name}: {row[name]}")
        del model
    ours, theirs = row["lamina"]["tokens_per_second"], row["peft"]["tokens_per_second"]
    return row | {"speed_vs_peft": round(ours / theirs, 2)}


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__)
    arguments.add_argument("--quick", action="store_true", help="a pico model, on any device")
    arguments.add_argument("--shapes", default="135m,1b,8b")
    arguments.add_argument("--steps", type=int, default=10)
    given = arguments.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not given.quick:
        raise SystemExit("there is no GPU here; --quick runs a pico model on the processor")
    if given.quick:
        given.shapes, given.steps = "pico", 2
    rate = peak_rate(device, 256 if given.quick else 8192)
    shapes = {n: measured(SHAPES[n], device, given.steps, rate) for n in given.shapes.split(",")}
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    emit("gpu", {"device": name, "product_flops": rate, "shapes": shapes}, keep=given.keep)


if __name__ == "__main__":
    main()
