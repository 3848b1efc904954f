"""What training takes of memory, predicted before it starts, beside what it then took.

Each configuration is one `lamina train` in a process of its own: the prediction that it prints
first, and the largest resident set of the process at its end, exam and naming included. Rows are
made of random words, so that lengths are what the configuration says. `error`: the prediction over
the measurement, less one. Base: smollm2-135m; `modules` trains a base of random weights of a family
whose decoder is not lamina's own (gemma3), through transformers' modules.

`checkpointing`: tokens a second and memory with and without, the same steps.
"""

import json
import random
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import BASE, ROOT, Log, emit, home, parser, say

WORDS = ["river", "stone", "light", "seven", "paper", "green", "window", "carry", "answer", "under"]
MODULES = "memory-modules"
"""Name of the base of random weights."""
BENEATH = ("memory-one", "memory-two", "memory-three")
LONG = {"batch_tokens": 2048, "max_length": 1024}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "checkpointing": {"checkpointing": True},
    "passes": {"batch_tokens": 4096, "pass_tokens": 512, "max_length": 512},
    "short, q and v": {"batch_tokens": 512, "max_length": 256, "targets": ["q_proj", "v_proj"]},
    "long, checkpointing": {"batch_tokens": 4096, "max_length": 2048, "checkpointing": True},
    "rank 256": {"batch_tokens": 1024, "rank": 256, "max_length": 512},
    "float32": {"batch_tokens": 1024, "dtype": "float32", "max_length": 512},
    "three layers beneath": {"on": BENEATH[-1], "batch_tokens": 1024, "max_length": 512},
    "modules": {"on": MODULES, "batch_tokens": 1024, "max_length": 512},
    "modules, checkpointing": {
        "on": MODULES, "batch_tokens": 1024, "max_length": 512, "checkpointing": True,
    },
}  # fmt: skip
STEPS = 4
_SPECIAL = ("bos", "eos", "pad")


class Watch(Log):
    """Keeps what is said of memory, and each step's speed."""

    def __init__(self) -> None:
        self.memory: dict[str, Any] = {}
        self.speeds: list[float] = []

    def event(self, event: Any) -> None:
        """Keep it."""
        if event["event"] == "memory":
            self.memory = dict(event)
        elif event["event"] == "step":
            self.speeds.append(event["tokens_per_second"])


def write_rows(path: Path, longest: int, tokens: int, seed: int) -> None:
    """Rows of half to nearly all of `longest` tokens, for `STEPS` steps and some to hold out."""
    draw = random.Random(seed)
    lines = []
    left = 1.4 * STEPS * tokens
    while left > 0 or len(lines) < 12:
        words = int(draw.uniform(0.45, 0.93) * longest) - 24
        said = [draw.choice(WORDS) for _ in range(max(4, words))]
        cut = len(said) * 2 // 5
        row = {"prompt": " ".join(said[:cut]), "completion": " ".join(said[cut:])}
        lines.append(json.dumps(row) + "\n")
        left -= words + 24
    path.write_text("".join(lines), encoding="utf-8")


def one(directory: Path, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Train one configuration in this process."""
    from lamina.core.recipe import Recipe
    from lamina.flows import learn
    from lamina.store.layout import Store

    fields = {"steps": STEPS, "exams": ("loss",), "held_out": 0.15, "held_out_max": 8} | given
    on = fields.pop("on", BASE)
    recipe = Recipe.parse(fields, name)
    rows = directory / f"{name.replace(' ', '-')}.jsonl"
    write_rows(rows, recipe.max_length, recipe.batch_tokens, len(name))
    watch, store = Watch(), Store.open(directory)
    request = learn.Request(
        on=on, data=[str(rows)], name=f"memory-{len(name)}" if name not in BENEATH else name,
        recipe=recipe, accept_regression="trained for a moment only", again=True,
    )  # fmt: skip
    learn.execute(store, learn.prepare(store, request, watch), watch)
    measured = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    predicted = watch.memory["predicted"]
    return {
        "predicted": predicted,
        "measured": measured,
        "error": round(predicted / measured - 1, 4),
        "tokens_per_second": round(median(watch.speeds[1:]), 1),
        **{key: watch.memory[key] for key in ("resident", "phases", "parts")},
    }


def in_a_process(directory: Path, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """`one` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.memory", "--home", str(directory)]
    done = subprocess.run(
        [*command, "--one", name, "--given", json.dumps(given)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def base_of_modules(directory: Path, *, tiny: bool) -> None:
    """A gemma3 of random weights, with the tokenizer of the base, into the store."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from lamina.api import pull
    from lamina.bases.load import load_tokenizer
    from lamina.stack.compile import base_directory
    from lamina.store.layout import Store

    store = Store.open(directory)
    if MODULES in store.bases():
        return
    folder = directory / MODULES
    tokenizer = load_tokenizer(base_directory(store, store.bases()[BASE]))
    size = 64 if tiny else 640
    config = AutoConfig.for_model(
        "gemma3_text", vocab_size=len(tokenizer), hidden_size=size, intermediate_size=3 * size,
        num_hidden_layers=2 if tiny else 14, num_attention_heads=4, num_key_value_heads=1,
        head_dim=size // 4, max_position_embeddings=4096,
        **{f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in _SPECIAL},
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pull(str(folder), name=MODULES, home=directory)


def main() -> None:
    """Measure and print; or be one configuration."""
    arguments = parser(__doc__)
    arguments.add_argument("--quick", action="store_true", help="short rows and few of them")
    arguments.add_argument("--only", help="configurations, with commas and no spaces between")
    arguments.add_argument("--one", help="inside: train one")
    arguments.add_argument("--given", help="inside: its recipe")
    given = arguments.parse_args()
    if given.one:
        print(json.dumps(one(given.home, given.one, json.loads(given.given))))
        return
    with home(given.home) as directory:
        emit("memory", measure(directory, given), keep=given.keep)


def measure(directory: Path, given: Any) -> dict[str, Any]:
    """Every configuration in turn."""
    from lamina.flows.bases import ensure
    from lamina.store.layout import Store

    store = Store.open(directory)
    ensure(store, BASE, Log())
    chosen = given.only.split(",") if given.only else list(CONFIGURATIONS)
    if any(name.startswith("modules") for name in chosen):
        base_of_modules(directory, tiny=given.quick)
    small = {"batch_tokens": 256, "max_length": 128} if given.quick else {}
    if "three layers beneath" in chosen and BENEATH[-1] not in store.names():
        under = BASE
        for name in BENEATH:
            tiny = {"on": under, "batch_tokens": 256, "max_length": 128, "steps": 2}
            in_a_process(directory, name, tiny)
            under = name
    found = {}
    for name in chosen:
        found[name] = in_a_process(directory, name, CONFIGURATIONS[name] | small)
        each = found[name]
        say(
            f"{name}: {each['predicted'] / 1e6:.0f} MB predicted, "
            f"{each['measured'] / 1e6:.0f} MB measured ({each['error']:+.1%})"
        )
    row: dict[str, Any] = {
        "worst_error": max(abs(each["error"]) for each in found.values()),
        "configurations": found,
        "quick": given.quick,
    }
    if {"default", "checkpointing"} <= set(found):
        off, on = found["default"], found["checkpointing"]
        row["checkpointing"] = {
            "tokens_per_second": round(on["tokens_per_second"] / off["tokens_per_second"], 3),
            "memory": round(on["measured"] / off["measured"], 3),
        }
    return row


if __name__ == "__main__":
    main()
