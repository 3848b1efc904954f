"""The training step beside peers: same base, rows, labels, rank and rate, one process each.

- `lamina`: its own loop, defaults.
- `trl_default`: TRL's SFTTrainer with PEFT as it comes (float32, gradient checkpointing, batch 8,
  padded, all logits).
- `trl_tuned`: the same by hand: bfloat16, no checkpointing, grouped by length.
- `peft_loop`: PEFT in a bare loop, bfloat16, lamina's own batches, all logits.

Speed: each runs `--repeats` times in turn for `--seconds` after two steps of warm-up; medians of
real tokens (no padding) a second. `roofline`: useful arithmetic a second (4 x the linears'
parameters a token, and 4 x the head's for each supervised one) over the fastest bfloat16 product
measured in the same run. Memory: the largest resident set of the process. Time to loss: seconds of
training, evaluations not counted, until the held-out loss is what lamina has after `--until`
tokens; every contestant at a constant rate after a warm-up of three steps.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.common import BASE, ROOT, Log, emit, home, median_seconds, parser, say
from lamina.bases import families
from lamina.bases.load import load
from lamina.core import heap
from lamina.core.recipe import Recipe
from lamina.data.example import Example
from lamina.data.read import read
from lamina.flows.bases import ensure
from lamina.lowrank.attach import Attachment
from lamina.stack.compile import base_directory
from lamina.store.layout import Store
from lamina.tokens.batch import collate
from lamina.tokens.mask import Encoded, encode_all
from lamina.tokens.pack import plan_batches
from lamina.tokens.template import ChatFormat
from lamina.train.fused import fuse
from lamina.train.job import fresh_factors
from lamina.train.objective import token_losses

PEERS = ("trl_default", "trl_tuned", "peft_loop")
WARM = 2
"""Steps before the clock starts."""
RATE, RANK, MAX_LENGTH = 3e-4, 16, 1024
PATIENCE = 3
"""A contestant that has not reached the loss after so many times the tokens has missed it."""
HELD = 16
"""Rows that are asked for the loss."""
BATCH = 8
FILES = {"gsm8k": "train_gsm8k.jsonl", "dolly": "train_dolly_small.jsonl"}


# -- what all share --------------------------------------------------------------------------------


class Clock:
    """Stops a contestant, and counts its tokens and seconds of training."""

    def __init__(
        self, folder: Path, *, seconds: float, most: float, until: float, every: int
    ) -> None:
        """Ends after `seconds`, `most` tokens or at the loss `until`, asked `every` so many."""
        self.folder = folder
        self.seconds, self.most, self.until, self.every = seconds, most, until, every
        self.eval_rows = rows_of(folder / "eval.npz")
        self.steps = self.tokens = 0
        self.spent = 0.0
        self.warm: tuple[int, float] | None = None
        self.losses: list[tuple[int, float, float]] = []
        self._asked = 0
        self._over = False

    def step(self, tokens: int, seconds: float, loss: Callable[[], float]) -> bool:
        """Count a step; whether to stop. `loss` is asked now and then, off the clock."""
        self.steps, self.tokens, self.spent = (
            self.steps + 1, self.tokens + tokens, self.spent + seconds,
        )  # fmt: skip
        if self.steps == WARM:
            self.warm = self.tokens, self.spent
        if self.every and not self._over and self.tokens >= self._asked + self.every:
            self._asked = self.tokens
            self.losses.append((self.tokens, round(self.spent, 2), loss()))
            say(f"{self.tokens} tokens, {self.spent:.0f} s: {self.losses[-1][2]:.4f}")
            self._over = self.losses[-1][2] <= self.until or self.tokens >= self.most
        if self.warm is None or self.steps == WARM:  # there is no speed before that
            return False
        return self._over or self.spent - self.warm[1] >= self.seconds

    def result(self) -> dict[str, Any]:
        """Tokens a second after the warm-up, memory, losses."""
        assert self.warm is not None
        tokens, spent = self.tokens - self.warm[0], self.spent - self.warm[1]
        return {
            "tokens_per_second": round(tokens / spent, 1),
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "losses": self.losses,
        }


def write_rows(path: Path, rows: list[Encoded]) -> None:
    """Token ids and supervised positions, one after another."""
    np.savez(
        path,
        ids=np.concatenate([row.ids for row in rows]),
        mask=np.concatenate([row.mask for row in rows]),
        lengths=np.array([len(row) for row in rows]),
    )


def rows_of(path: Path) -> list[Encoded]:
    """What `write_rows` wrote."""
    found = np.load(path)
    cuts = found["lengths"].cumsum()[:-1]
    parts = zip(np.split(found["ids"], cuts), np.split(found["mask"], cuts), strict=True)
    return [Encoded(ids, mask, str(index)) for index, (ids, mask) in enumerate(parts)]


def loss_of(model: Any, rows: list[Encoded]) -> Callable[[], float]:
    """Held-out loss through the model's own forward and logits: the same for every contestant."""

    @torch.no_grad()
    def measured() -> float:
        total, count = 0.0, 0
        model.eval()
        for row in rows:
            ids = torch.from_numpy(row.ids.astype(np.int64))[None]
            logits = model(input_ids=ids).logits[0, :-1].float()
            at = torch.from_numpy(row.mask[1:])
            losses = torch.nn.functional.cross_entropy(logits[at], ids[0, 1:][at], reduction="sum")
            total, count = total + float(losses), count + int(at.sum())
        return total / count

    return measured


# -- contestants -----------------------------------------------------------------------------------


def lamina(base: Path, rows: list[Encoded], clock: Clock) -> None:
    """The loop's own step: fused decoder, labels only, one flat buffer, AdamW in one pass."""
    model = load(base, dtype=torch.bfloat16).model
    linears = families.linears(model)
    recipe = Recipe(rank=RANK, lr=RATE)
    attachment = Attachment(model, fresh_factors(linears, recipe), linears)
    decoder = fuse(model)[0] or model
    optimiser = torch.optim.AdamW([attachment.flat], lr=RATE, weight_decay=0.0, fused=True)
    measured = loss_of(model, clock.eval_rows)
    heap.give_back()
    for step, batch in enumerate(batches(rows, recipe.batch_tokens)):
        began = time.perf_counter()
        _warm_up(optimiser, step)
        attachment.zero_grad()
        token_losses(decoder, collate(batch, 0)).mean().backward()
        torch.nn.utils.clip_grad_norm_([attachment.flat], 1.0)
        optimiser.step()
        if clock.step(sum(map(len, batch)), time.perf_counter() - began, measured):
            return


def peft_loop(base: Path, rows: list[Encoded], clock: Clock) -> None:
    """PEFT's layers, all logits, the same batches."""
    model: Any = _peft(base)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True)
    measured = loss_of(model, clock.eval_rows)
    for step, batch in enumerate(batches(rows, Recipe().batch_tokens)):
        began = time.perf_counter()
        _warm_up(optimiser, step)
        optimiser.zero_grad()
        ids = collate(batch, 0).ids
        labels = torch.full_like(ids, -100)
        for index, row in enumerate(batch):
            at = torch.from_numpy(row.mask)
            labels[index, : len(row)][at] = ids[index, : len(row)][at]
        lengths = torch.tensor([[len(row)] for row in batch])
        attention = (torch.arange(ids.shape[1])[None] < lengths).long()
        model.train()
        model(input_ids=ids, attention_mask=attention, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if clock.step(sum(map(len, batch)), time.perf_counter() - began, measured):
            return


def trl_default(base: Path, rows: list[Encoded], clock: Clock) -> None:
    """As TRL comes."""
    _trl(base, rows, clock, torch.float32)


def trl_tuned(base: Path, rows: list[Encoded], clock: Clock) -> None:
    """By hand: bfloat16, no checkpointing, rows grouped by length."""
    tuned = {"gradient_checkpointing": False, "train_sampling_strategy": "group_by_length"}
    _trl(base, rows, clock, torch.bfloat16, **tuned)


def _trl(base: Path, rows: list[Encoded], clock: Clock, dtype: torch.dtype, **changes: Any) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from lamina.bases.load import load_tokenizer

    class Watch(TrainerCallback):  # type: ignore[misc]
        began = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> Any:
            spent = time.perf_counter() - self.began
            tokens = counted.pop(0)
            if clock.step(tokens, spent, loss_of(given["model"], clock.eval_rows)):
                control.should_training_stop = True
            given["model"].train()
            return control

    counted: list[int] = []
    data = [
        {"input_ids": row.ids.tolist(), "labels": np.where(row.mask, row.ids, -100).tolist()}
        for row in rows
    ]
    config = SFTConfig(
        output_dir=str(clock.folder / "trl"), max_steps=100_000, report_to="none",
        save_strategy="no", logging_strategy="no", learning_rate=RATE,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=3, weight_decay=0.0, use_cpu=True, bf16=False, disable_tqdm=True,
        per_device_train_batch_size=BATCH, dataset_kwargs={"skip_prepare_dataset": True},
        max_length=MAX_LENGTH, **changes,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    trainer = SFTTrainer(
        model=model, args=config, train_dataset=Dataset.from_list(data),
        processing_class=load_tokenizer(base), peft_config=_lora(), callbacks=[Watch()],
    )  # fmt: skip
    collator = trainer.data_collator

    def counting(features: Any) -> Any:
        counted.append(sum(len(each["input_ids"]) for each in features))
        return collator(features)

    trainer.data_collator = counting
    trainer.train()


def _lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", lora_dropout=0.0)


def _peft(base: Path) -> Any:
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    return get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), _lora())


def _warm_up(optimiser: torch.optim.Optimizer, step: int) -> None:
    for group in optimiser.param_groups:
        group["lr"] = RATE * min(1.0, (step + 1) / 3)


def batches(rows: list[Encoded], tokens: int) -> Iterator[list[Encoded]]:
    """Without end, each epoch in another order."""
    epoch = 0
    while True:
        for indices in plan_batches([len(row) for row in rows], tokens, seed=0, epoch=epoch):
            yield [rows[index] for index in indices]
        epoch += 1


CONTESTANTS = {
    "lamina": lamina, "trl_default": trl_default, "trl_tuned": trl_tuned, "peft_loop": peft_loop,
}  # fmt: skip


# -- the run ---------------------------------------------------------------------------------------


def main() -> None:
    """Measure and print; or be one contestant."""
    arguments = parser(__doc__, data=True)
    arguments.add_argument("--quick", action="store_true", help="a few steps each")
    arguments.add_argument("--rows-of", choices=FILES, default="gsm8k")
    arguments.add_argument("--rows", type=int, default=400)
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--seconds", type=float, default=25.0)
    arguments.add_argument("--until", type=int, default=16_000, help="tokens; 0: no time to loss")
    arguments.add_argument("--peers", default=",".join(PEERS))
    arguments.add_argument("--contestant", choices=CONTESTANTS, help="inside: run one")
    arguments.add_argument("--clock", help="inside: its folder and when it ends")
    given = arguments.parse_args()
    if given.contestant:
        _contest(given)
        return
    if given.quick:
        given.rows, given.repeats, given.seconds, given.until = 24, 1, 0.5, 400
    with home(given.home) as directory:
        store = Store.open(directory)
        ensure(store, BASE, Log())
        row = measure(base_directory(store, store.bases()[BASE]), directory / "bench-train", given)
    emit("train", row, keep=given.keep)


def _contest(given: Any) -> None:
    found = json.loads(given.clock)
    base, folder = Path(found.pop("base")), Path(found.pop("folder"))
    clock = Clock(folder, **found)
    CONTESTANTS[given.contestant](base, rows_of(folder / "rows.npz"), clock)
    print(json.dumps(clock.result()))


def measure(base: Path, work: Path, given: Any) -> dict[str, Any]:
    """All contestants in turn, then the time to one loss."""
    work.mkdir(exist_ok=True)
    loaded = load(base, dtype=torch.bfloat16)
    examples: list[Example] = list(read([str(given.data / FILES[given.rows_of])]).examples)
    chat = ChatFormat(loaded.tokenizer)
    encoded = encode_all(examples[: given.rows], chat, max_length=MAX_LENGTH)
    rows, held = list(encoded.rows[:-HELD]), list(encoded.rows[-HELD:])
    if given.quick:
        rows, held = list(encoded.rows), list(encoded.rows[:4])
    write_rows(work / "rows.npz", rows)
    write_rows(work / "eval.npz", held)
    names = ["lamina", *(name for name in given.peers.split(",") if name)]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    products = []
    for _ in range(given.repeats):
        products.append(_product())
        for name in names:
            found[name].append(_run(name, base, work, seconds=given.seconds))
            say(f"{name}: {found[name][-1]['tokens_per_second']} tokens/s")
    speed = {name: median(each["tokens_per_second"] for each in found[name]) for name in names}
    memory = {name: median(each["peak_bytes"] for each in found[name]) for name in names}
    useful = _useful(loaded.model, rows)
    row: dict[str, Any] = {
        "rows": f"{len(rows)} of {FILES[given.rows_of]}",
        "rank": RANK,
        "tokens_per_second": speed,
        "peak_bytes": memory,
        "product_flops": round(median(products)),
        "roofline": round(speed["lamina"] * useful / median(products), 4),
        "rooflines": {n: round(s * useful / median(products), 4) for n, s in speed.items()},
        "quick": given.quick,
    }
    if "trl_default" in names:
        row["memory_vs_trl"] = round(memory["lamina"] / memory["trl_default"], 4)
    row["speed_vs"] = {n: round(speed["lamina"] / speed[n], 2) for n in names[1:]}
    row |= _times(names, base, work, given) if given.until else {}
    return row


def _times(names: list[str], base: Path, work: Path, given: Any) -> dict[str, Any]:
    """Seconds of training until the loss that lamina has after `--until` tokens."""
    every = max(200, given.until // 16)
    first = _run("lamina", base, work, most=given.until, every=every)
    target = first["losses"][-1][2]
    seconds, used, missed = {}, {}, []
    for name in names:
        most = PATIENCE * given.until
        last = _run(name, base, work, until=target, every=every, most=most)["losses"][-1]
        used[name], seconds[name] = last[0], last[1]
        missed += [name] if last[2] > target else []
    ratio = {name: round(seconds[name] / seconds["lamina"], 2) for name in names[1:]}
    keys = {"trl_default": "vs_trl_default", "trl_tuned": "vs_tuned", "peft_loop": "vs_peft_loop"}
    return {
        "loss": round(target, 4),
        "seconds_to_loss": seconds,
        "tokens_to_loss": used,
        "not_reached": missed,
        **{keys[name]: value for name, value in ratio.items()},
    }


def _run(
    name: str, base: Path, folder: Path, *, seconds: float = 1e9, most: float = 1e12,
    until: float = -1.0, every: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """One contestant in a process of its own."""
    clock = {
        "base": str(base), "folder": str(folder), "seconds": seconds, "most": most,
        "until": until, "every": every,
    }  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.train", "--contestant", name]
    done = subprocess.run(
        [*command, "--clock", json.dumps(clock)], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        check=True,
    )  # fmt: skip
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _product() -> float:
    """The most floating-point operations a second of the bfloat16 products of this base's kind."""
    best = 0.0
    for n, k, m in ((1024, 576, 1536), (2048, 2048, 2048)):
        a, b = torch.randn(n, k).bfloat16(), torch.randn(m, k).bfloat16()
        best = max(best, 2 * n * k * m / median_seconds(lambda a=a, b=b: a @ b.T, 20))
    return best


def _useful(model: Any, rows: list[Encoded]) -> float:
    """Floating-point operations that a token needs, on average: forward, and back to its inputs."""
    linears = sum(linear.weight.numel() for linear in families.linears(model).values())
    head = families.head(model).weight.numel()
    share = sum(int(row.mask.sum()) for row in rows) / sum(map(len, rows))
    return 4.0 * (linears + head * share)


if __name__ == "__main__":
    main()
