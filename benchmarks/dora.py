"""DoRA (arXiv:2402.09353) beside plain LoRA, both by PEFT in one bare loop, for `methods.py`."""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.train import loss_of
from lamina.core.recipe import Recipe
from lamina.tokens.batch import collate
from lamina.tokens.mask import Encoded
from lamina.tokens.pack import plan_batches
from lamina.train.schedule import learning_rate, warmup_steps

PROBED = 4
"""Steps by which the two kinds' costs are compared; the first does not count."""


@dataclass(frozen=True, eq=False)
class Loop:
    """One data set for both kinds."""

    base: Path
    rows: list[Encoded]
    held: list[Encoded]
    rank: int
    batch_tokens: int

    def slower(self) -> float:
        """How many times as long a step of DoRA takes, on the same batches, in turn."""
        seconds: dict[bool, list[float]] = {}
        for dora in (False, True):
            seconds[dora] = self.run(dora, 1e-4, 0, PROBED)["step_seconds"][1:]
        pairs = zip(seconds[True], seconds[False], strict=True)
        return statistics.median(slow / fast for slow, fast in pairs)

    def run(self, dora: bool, rate: float, seed: int, steps: int) -> dict[str, Any]:
        """Train so many steps: each step's seconds, the tokens, and the trained model."""
        recipe = Recipe(lr=rate, steps=steps)
        torch.manual_seed(seed)
        model = _model(self.base, self.rank, dora=dora)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(
            parameters, lr=rate, betas=recipe.betas, weight_decay=0.0, fused=True
        )
        plan = plan_batches([len(row) for row in self.rows], self.batch_tokens, seed, 0)
        seconds, tokens = [], 0
        model.train()
        for step in range(steps):
            began = time.perf_counter()
            batch = [self.rows[i] for i in plan[step % len(plan)]]
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(recipe, step, steps, warmup_steps(recipe, steps))
            optimiser.zero_grad()
            _loss(model, batch).backward()
            torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
            optimiser.step()
            seconds.append(time.perf_counter() - began)
            tokens += sum(map(len, batch))
        return {"step_seconds": seconds, "tokens": tokens, "model": model}

    def measured(self, dora: bool, rate: float, seed: int, steps: int) -> dict[str, Any]:
        """The same as `methods.Bench.run` gives it."""
        found = self.run(dora, rate, seed, steps)
        model = found["model"]
        items = []
        for row in self.held:
            count = int(row.mask[1:].sum())
            items.append((loss_of(model, [row])() * count, float(count)))
        return {
            "items": items,
            "steps": steps,
            "tokens": found["tokens"],
            "seconds": sum(found["step_seconds"]),
            "start_seconds": 0.0,
            "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        }


def _model(base: Path, rank: int, *, dora: bool) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", lora_dropout=0.0, use_dora=dora
    )
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    return get_peft_model(model, config)


def _loss(model: Any, rows: list[Encoded]) -> Any:
    ids = collate(rows, 0).ids
    labels = torch.full_like(ids, -100)
    for index, row in enumerate(rows):
        at = torch.from_numpy(row.mask)
        labels[index, : len(row)][at] = ids[index, : len(row)][at]
    lengths = torch.tensor([[len(row)] for row in rows])
    attention = (torch.arange(ids.shape[1])[None] < lengths).long()
    return model(input_ids=ids, attention_mask=attention, labels=labels).loss
