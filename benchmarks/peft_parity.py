"""Exports and imports agree with PEFT itself, on the embedded base.

Stacks of 1, 2 and 4 trained layers are exported as one adapter, loaded by PEFT onto the base, and
compared with lamina's folded stack, in float32 and bfloat16. Then an adapter that PEFT trained is
imported and compared the same way. The measure: largest difference of logits over the largest
logit of the position, over all positions of several prompts.
"""

import json
import tempfile
from pathlib import Path

import torch

from benchmarks.common import BASE, Log, emit, home, parser, say
from lamina.bases.load import load
from lamina.core.recipe import Recipe
from lamina.data.example import Message
from lamina.export import peft as export_peft
from lamina.export.parity import compare, logits_of
from lamina.flows import learn
from lamina.flows.bases import ensure
from lamina.flows.importing import Request as Import
from lamina.flows.importing import take_in
from lamina.flows.to_python import load_peft
from lamina.stack.compile import base_directory, compile_stack, layer_factors
from lamina.stack.resolve import ResolvedStack, resolve
from lamina.store.layout import Store

DEPTHS = (1, 2, 4)
QUESTIONS = (
    "What is the capital of Australia?",
    "Write two sentences about rivers.",
    "def fibonacci(n):",
    "Add 17 and 25, then explain the steps in order, one a line.",
)
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def train_stack(store: Store, work: Path, depth: int, base: str = BASE) -> str:
    """A stack of `depth` really trained layers (a few steps each at a high rate)."""
    on, lead = base, "parity" if base == BASE else f"parity-{base}"
    for number in range(1, depth + 1):
        data = work / f"rows-{number}.jsonl"
        rows = [
            {
                "prompt": f"Item {i} of list {number}?",
                "completion": f"{number} x {i} = {number * i}",
            }
            for i in range(64)
        ]
        data.write_text("".join(json.dumps(r) + "\n" for r in rows))
        name = f"{lead}-{number}"
        recipe = Recipe(rank=4 * number, lr=2e-3, steps=6, held_out=0.05, exams=("loss",),
                        scaling="rslora" if number % 2 == 0 else "lora")  # fmt: skip
        request = learn.Request(on=on, data=[str(data)], name=name, recipe=recipe,
                                accept_regression="parity benchmark")  # fmt: skip
        learn.execute(store, learn.prepare(store, request, Log()), Log())
        on = name
    return on


def differences(store: Store, stack: ResolvedStack, adapter: Path) -> dict[str, float]:
    """lamina's folded stack against PEFT on the base, by dtype."""
    found = {}
    for name, dtype in DTYPES.items():
        ours = compile_stack(store, stack, dtype=dtype)
        prompts = [ours.format.prompt_ids((Message(role="user", content=q),)) for q in QUESTIONS]
        expected = logits_of(ours.model, prompts)
        base = load(base_directory(store, stack.base), dtype=dtype).model
        found[name] = compare(expected, logits_of(load_peft(base, adapter), prompts), dtype).max_rel
    return found


def peft_trained(store: Store, stack: ResolvedStack, directory: Path) -> None:
    """An adapter that PEFT itself makes and trains for a few steps on the base."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    loaded = load(base_directory(store, stack.base), dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=24, use_rslora=True, target_modules=["q_proj", "down_proj"],
                        task_type="CAUSAL_LM")  # fmt: skip
    model = get_peft_model(loaded.model, config)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    ids = torch.randint(10, 4000, (2, 48))
    for _ in range(4):
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(str(directory))


def main() -> None:
    """Measure and print."""
    given = parser(__doc__).parse_args()
    results: dict[str, dict[str, float]] = {}
    with home(given.home) as directory, tempfile.TemporaryDirectory() as temporary:
        store, work = Store.open(directory), Path(temporary)
        ensure(store, BASE, Log())
        train_stack(store, work, max(DEPTHS))
        for depth in DEPTHS:
            stack = resolve(store, f"parity-{depth}")
            adapter = work / f"adapter-{depth}"
            adapter.mkdir()
            compiled = compile_stack(store, stack, dtype=torch.float32)
            layers = [layer_factors(store, layer) for layer in stack.layers]
            export_peft.write(layers, compiled.linears, adapter, BASE)
            results[f"export_{depth}"] = differences(store, stack, adapter)
            say(f"{depth} layers: {results[f'export_{depth}']}")
        theirs = work / "peft-made"
        peft_trained(store, resolve(store, BASE), theirs)
        wanted = Import(str(theirs), BASE, "parity-imported", override="parity benchmark")
        take_in(store, wanted, Log())
        results["import"] = differences(store, resolve(store, "parity-imported"), theirs)
        say(f"imported: {results['import']}")
    row = {
        "max_rel_f32": max(r["f32"] for r in results.values()),
        "max_rel_bf16": max(r["bf16"] for r in results.values()),
        "cases": results,
        "prompts": len(QUESTIONS),
    }
    emit("peft_parity", row, keep=given.keep)


if __name__ == "__main__":
    main()
