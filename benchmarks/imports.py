"""Imports of what other tools made of the base: time, what is lost, and what that does to logits.

PEFT trains a LoRA, a DoRA and the linears themselves for a few steps on dolly, merges and saves, as
people do. Each is imported, and the layer compared with the model that PEFT or transformers has in
memory: the largest difference of logits, relative to the largest, over three prompts, and for
merged adapters the share of the true update that is lost (Frobenius). GGUF, mlx and kohya files
hold the same LoRA.
"""

import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from benchmarks.common import BASE, Log, emit, home, parser, say, versions
from lamina.bases.load import load, load_tokenizer
from lamina.flows.adapters import export
from lamina.flows.bases import ensure
from lamina.flows.importing import Request, take_in
from lamina.stack.compile import base_directory, stored_factors
from lamina.stack.resolve import resolve
from lamina.store.layout import Store

RANK, TOKENS = 16, 128
STEPS, QUICK = 24, 4
WHY = "imports benchmark"


class World:
    """A store, its base, and what PEFT made of it."""

    def __init__(self, store: Store, work: Path, rows: Path, steps: int) -> None:
        self.store, self.work, self.steps = store, work, steps
        self.folder = base_directory(store, store.bases()[BASE])
        tokenizer = load_tokenizer(self.folder)
        texts = [json.loads(line)["messages"] for line in rows.open()][:steps]
        self.ids = [
            tokenizer("\n".join(m["content"] for m in text))["input_ids"][:TOKENS] for text in texts
        ]

    def base(self) -> nn.Module:
        """The base in float32."""
        return load(self.folder, dtype=torch.float32).model

    def tune(self, model: nn.Module, rate: float) -> nn.Module:
        """AdamW on what may be trained, one row a step."""
        trained = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=rate)
        for ids in self.ids:
            row = torch.tensor([ids])
            model(input_ids=row, labels=row).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        return model.eval()

    def adapter(self, **fields: Any) -> nn.Module:
        """The base with an adapter that PEFT trained."""
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear",
                            task_type="CAUSAL_LM", **fields)  # fmt: skip
        return self.tune(get_peft_model(self.base(), config), 1e-3)

    def tuned(self) -> nn.Module:
        """The base with its decoder's linears trained themselves."""
        model = self.base()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(bool(re.search(r"_proj\.weight$", name)))
        return self.tune(model, 2e-5)

    def take(self, path: Path, name: str, **how: Any) -> dict[str, Any]:
        """Import, and say how long it took."""
        began = time.perf_counter()
        wanted = Request(str(path), BASE, name, override=WHY, **how)
        done = take_in(self.store, wanted, Log())
        row = {"seconds": round(time.perf_counter() - began, 1), "kind": done["kind"],
               "rank": done["rank"], "error": done["error"],
               "logits": done["logits_difference"], "effect": done["effect"]}  # fmt: skip
        say(f"{name}: {row}")
        return row

    def lost(self, name: str, updates: dict[str, torch.Tensor]) -> float:
        """Share of a known update that an imported layer has not, Frobenius, over all linears."""
        found = stored_factors(self.store, resolve(self.store, name).layers[-1].digest)
        off = norm = 0.0
        for module, update in updates.items():
            kept = torch.zeros_like(update)
            if module in found:
                kept = found[module].scale * found[module].b_OR @ found[module].a_RI
            off += float((kept - update).double().square().sum())
            norm += float(update.double().square().sum())
        return (off / norm) ** 0.5


def plain(world: World) -> Iterator[tuple[str, dict[str, Any]]]:
    """One LoRA in every format that holds it."""
    model = world.adapter()
    model.save_pretrained(str(world.work / "lora"))
    yield "peft", world.take(world.work / "lora", "import-peft")
    updates = {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    for target, path in (("gguf-lora", "adapter.gguf"), ("mlx", "")):
        export(world.store, "import-peft", world.work / target, target, Log())
        yield target, world.take(world.work / target / path, f"import-{target}")
    yield "kohya", world.take(_kohya(world), "import-kohya")
    merged = model.merge_and_unload()
    for dtype in (torch.float32, torch.bfloat16):
        word = str(dtype).removeprefix("torch.")
        merged.to(dtype).save_pretrained(str(world.work / word))
        row = world.take(world.work / word, f"import-{word}")
        yield f"merged in {word}", row | {"lost": world.lost(f"import-{word}", updates)}


def _kohya(world: World) -> Path:
    found = stored_factors(world.store, resolve(world.store, "import-peft").layers[-1].digest)
    tensors = {}
    for module, parts in found.items():
        stem = "lora_te_" + module.replace(".", "_")
        tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"] = (
            parts.a_RI, parts.b_OR,
        )  # fmt: skip
        tensors[f"{stem}.alpha"] = torch.tensor(parts.scale * parts.rank)
    safetensors.torch.save_file(tensors, world.work / "kohya.safetensors")
    return world.work / "kohya.safetensors"


def directed(world: World) -> Iterator[tuple[str, dict[str, Any]]]:
    """A DoRA, folded at several ranks."""
    world.adapter(use_dora=True).save_pretrained(str(world.work / "dora"))
    for rank in (RANK, 4 * RANK):
        yield (
            f"dora at rank {rank}",
            world.take(world.work / "dora", f"import-dora-{rank}", dora="fold", rank=rank),
        )


def whole(world: World) -> Iterator[tuple[str, dict[str, Any]]]:
    """Linears tuned themselves, saved in bfloat16 and in float32."""
    model = world.tuned()
    given = (RANK, 4 * RANK)
    # a pico base is in float32: a few steps of it in bfloat16 are rounding, and no layer
    chosen = (None,) if world.steps > QUICK else ()
    for dtype, ranks in ((torch.float32, (*given, None)), (torch.bfloat16, (*given, *chosen))):
        word = str(dtype).removeprefix("torch.")
        model.to(dtype).save_pretrained(str(world.work / f"tuned-{word}"))
        for rank in ranks:
            name = f"tuned in {word}" + (f", rank {rank}" if rank else "")
            label = f"import-tuned-{word}-{rank or 'chosen'}"
            yield name, world.take(world.work / f"tuned-{word}", label, rank=rank)


PARTS: tuple[Callable[[World], Iterator[tuple[str, dict[str, Any]]]], ...] = (
    plain, directed, whole,
)  # fmt: skip


def main() -> None:
    """Make, import, compare and print."""
    arguments = parser(__doc__, data=True)
    arguments.add_argument("--quick", action="store_true", help="few steps of training")
    given = arguments.parse_args()
    cases: dict[str, dict[str, Any]] = {}
    with home(given.home) as directory, tempfile.TemporaryDirectory() as temporary:
        store = Store.open(directory)
        ensure(store, BASE, Log())
        rows = given.data / "train_dolly_small.jsonl"
        world = World(store, Path(temporary), rows, QUICK if given.quick else STEPS)
        for part in PARTS:
            for name, row in part(world):
                cases[name] = row
    exact = [row["logits"] for row in cases.values() if row["error"] is None]
    row = {"cases": cases, "worst_exact_logits": max(exact), "steps": world.steps, "rank": RANK,
           "engines": versions("peft", "gguf", "safetensors")}  # fmt: skip
    emit("imports", row, keep=given.keep)


if __name__ == "__main__":
    main()
