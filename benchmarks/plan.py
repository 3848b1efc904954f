"""What `lamina plan` says a run will take, beside what it then took: minutes and memory.

Each configuration is one `lamina train` by command, in a process of its own, exam and naming
included. Before it a probe (`flows.probe`, once for each base and dtype, about 20 seconds) measures
this machine, and the same functions as in `lamina plan` say what the run will take; nothing of the
run itself is known then. A second of fixed work right before the run tells how busy the machine is
beside the time of the probe (`pulse`), and scales what is said. `error`: the prediction over the
measurement, less one.

The clock is the processor's time of one thread, of probe and run alike, so that neither counts what
other programs on the machine take (`wall`: by the clock on the wall, for comparison). Memory: the
prediction of `plan.memory`, and the largest resident set of the process.

Bases: smollm2-135m, gemma3-270m where the store has it, and three of random weights.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import BASE, ROOT, Log, emit, home, parser, say
from benchmarks.memory import write_rows

GEMMA = "gemma3-270m"
SHAPES: dict[str, dict[str, Any]] = {
    "plan-wide": {"family": "llama", "hidden": 384, "layers": 6, "queries": 6},
    "plan-deep": {"family": "qwen3", "hidden": 192, "layers": 20, "queries": 3},
    "plan-modules": {"family": "gemma3_text", "hidden": 256, "layers": 6, "queries": 4},
}
"""Bases of random weights."""
BENEATH = ("plan-one", "plan-two")
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "default": {"rows": "dolly", "steps": 3},
    "beneath": {"as": BENEATH[0], "rows": "gsm8k", "lines": 60, "batch_tokens": 1024,
                "steps": 3},
    "short": {"rows": "words", "batch_tokens": 512, "max_length": 128, "steps": 10},
    "long": {"rows": "words", "batch_tokens": 1024, "max_length": 1024, "steps": 5},
    "rank 64": {"rows": "gsm8k", "batch_tokens": 1024, "rank": 64, "steps": 4},
    "q and v": {"rows": "dolly", "batch_tokens": 1024, "targets": ["q_proj", "v_proj"],
                "rank": 8, "steps": 5},
    "checkpointing": {"rows": "gsm8k", "checkpointing": True, "steps": 3},
    "passes": {"rows": "gsm8k", "batch_tokens": 1024, "pass_tokens": 256, "steps": 4},
    "above": {"rows": "gsm8k", "batch_tokens": 1024, "above": 0.5, "steps": 6},
    "over one": {"on": BENEATH[0], "as": BENEATH[1], "rows": "dolly", "lines": 60,
                 "batch_tokens": 1024, "steps": 4},
    "over two": {"on": BENEATH[1], "rows": "gsm8k", "batch_tokens": 1024, "protect": 0.0,
                 "steps": 4},
    "float32": {"rows": "gsm8k", "batch_tokens": 512, "dtype": "float32", "steps": 4},
    "gemma": {"on": GEMMA, "rows": "gsm8k", "batch_tokens": 512, "steps": 4},
    "wide": {"on": "plan-wide", "rows": "gsm8k", "rank": 32, "steps": 20},
    "deep": {"on": "plan-deep", "rows": "dolly", "steps": 20},
    "modules": {"on": "plan-modules", "rows": "gsm8k", "batch_tokens": 1024, "steps": 20},
}  # fmt: skip
PROGRAM = (sys.executable, "-c", "from lamina.cli.app import main; main()")
QUICK = ("wide", "modules")
SHARED = {"exams": ["loss"], "held_out": 0.1, "held_out_max": 12, "warmup": 0.0}
FILES = {"gsm8k": "train_gsm8k.jsonl", "dolly": "train_dolly_small.jsonl"}
LINES = 200
"""Rows of a real file that are given, unless the configuration says."""
NOT_RECIPE = ("on", "as", "rows", "lines")
_SPECIAL = ("bos", "eos", "pad")


def rows_of(directory: Path, name: str, given: dict[str, Any], data: Path) -> Path:
    """The file of a configuration's rows."""
    path = directory / f"plan-{name.replace(' ', '-')}.jsonl"
    kind, length = given["rows"], given.get("max_length", 1024)
    most = given.get("lines", LINES)
    if kind == "words":
        write_rows(path, length, given.get("batch_tokens", 2048), len(name))
    else:
        with (data / FILES[kind]).open(encoding="utf-8") as lines:
            path.write_text("".join(line for line, _ in zip(lines, range(most), strict=False)))
    return path


def base_of(directory: Path, name: str, *, tiny: bool) -> None:
    """A base of random weights, with the tokenizer of the embedded one, into the store."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from lamina.api import pull
    from lamina.bases.load import load_tokenizer
    from lamina.stack.compile import base_directory
    from lamina.store.layout import Store

    store = Store.open(directory)
    if name in store.bases():
        return
    tokenizer = load_tokenizer(base_directory(store, store.bases()[BASE]))
    shape = SHAPES[name]
    hidden, layers, queries = shape["hidden"], shape["layers"], shape["queries"]
    if tiny:
        hidden, layers, queries = 64, 2, 1
    config = AutoConfig.for_model(
        shape["family"], vocab_size=len(tokenizer), hidden_size=hidden,
        intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=queries, num_key_value_heads=1, head_dim=64,
        max_position_embeddings=4096, tie_word_embeddings=True,
        **{f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in _SPECIAL},
    )  # fmt: skip
    torch.manual_seed(0)
    folder = directory / name
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pull(str(folder), name=name, home=directory)


def calibrate(directory: Path, base: str, dtype: str, seconds: float) -> None:
    """The probe, in a process of its own that has just started, as `lamina plan --probe` is."""
    from lamina.cli import app  # noqa: F401  what `lamina plan` has imported by then
    from lamina.core.recipe import Recipe
    from lamina.flows import amounts, probe  # noqa: F401
    from lamina.stack.resolve import resolve
    from lamina.store.layout import Store

    start = time.process_time()

    store = Store.open(directory)
    stack = resolve(store, base)
    recipe = Recipe.model_validate({"dtype": dtype})
    found = probe.probe(
        store, stack, recipe, Log(), start=start, seconds=seconds, clock=time.process_time
    )
    probe.keep(store, found)
    print(found.to_bytes().decode())


def predict(directory: Path, name: str, given: dict[str, Any], data: Path) -> dict[str, Any]:
    """What `lamina plan` says of a configuration, from the calibration that is kept."""
    from lamina.core.recipe import Recipe
    from lamina.data.read import read
    from lamina.flows import learn, probe
    from lamina.flows.amounts import of_training
    from lamina.plan import memory
    from lamina.plan.time import estimate
    from lamina.stack.resolve import resolve
    from lamina.store.layout import Store

    store = Store.open(directory)
    fields = {k: v for k, v in given.items() if k not in NOT_RECIPE}
    recipe = Recipe.parse(SHARED | fields, name)
    stack = resolve(store, given.get("on", BASE))
    path = rows_of(directory, name, given, data)
    request = learn.Request(on=given.get("on", BASE), data=[str(path)], name="x", recipe=recipe)
    planned = of_training(store, stack, request, read([str(path)]))
    calibration = probe.kept(store, stack, recipe.dtype)
    assert calibration is not None
    beat = probe.pulse(time.process_time)
    found = estimate(planned.run, calibration, beat)
    needed = memory.predict(planned.shapes, planned.work, calibration.resident)
    return {
        "seconds": found.seconds,
        "phases": found.phases,
        "memory": needed.bytes,
        "pulse": beat / calibration.pulse,
    }


def measure(directory: Path, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Train by command: seconds of the processor and on the wall, and the largest resident set."""
    fields = {k: v for k, v in given.items() if k not in NOT_RECIPE}
    recipe = directory / "plan-recipe.json"
    recipe.write_text(json.dumps(SHARED | fields))
    path = directory / f"plan-{name.replace(' ', '-')}.jsonl"
    command = [
        *PROGRAM, "train", "--on", given.get("on", BASE), "--data", str(path), "--as",
        given.get("as", f"plan-run-{name.replace(' ', '-')}"), "--recipe", str(recipe), "--again",
        "--accept-regression", "trained for a moment only", "--json",
    ]  # fmt: skip
    began = time.perf_counter()
    run = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"LAMINA_HOME": str(directory)},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert run.stdout is not None
    said = run.stdout.read()
    _, status, usage = os.wait4(run.pid, 0)
    if status:
        raise RuntimeError(f"{name}: {' '.join(command)} ended with {status}")
    cost = json.loads(said)["cost"]
    return {
        "seconds": usage.ru_utime + usage.ru_stime,
        "wall": time.perf_counter() - began,
        "memory": usage.ru_maxrss * 1024,
        "training_seconds": cost["seconds"],
    }


def main() -> None:
    """Measure and print; or be one probe."""
    arguments = parser(__doc__, data=True)
    arguments.add_argument("--quick", action="store_true", help="two configurations, few steps")
    arguments.add_argument("--only", help="configurations, with commas and no spaces between")
    arguments.add_argument("--probe", nargs=2, metavar=("BASE", "DTYPE"), help="inside")
    arguments.add_argument("--probe-seconds", type=float, default=20.0)
    given = arguments.parse_args()
    if given.probe:
        calibrate(given.home, *given.probe, given.probe_seconds)
        return
    with home(given.home) as directory:
        emit("plan", compare(directory, given), keep=given.keep)


def compare(directory: Path, given: Any) -> dict[str, Any]:
    """Every configuration: probed where its base was not yet, predicted, then run."""
    from lamina.flows.bases import ensure
    from lamina.store.layout import Store

    store = Store.open(directory)
    ensure(store, BASE, Log())
    few = list(QUICK) if given.quick else list(CONFIGURATIONS)
    chosen = given.only.split(",") if given.only else few
    if given.quick:
        given.probe_seconds = 2.0
    found: dict[str, Any] = {}
    probes: dict[str, float] = {}
    for name in chosen:
        asked = dict(CONFIGURATIONS[name])
        if given.quick:
            asked |= {"rows": "words", "batch_tokens": 256, "max_length": 128, "steps": 2}
        on = asked.get("on", BASE)
        if on == GEMMA and GEMMA not in store.bases():
            continue
        if on in SHAPES:
            base_of(directory, on, tiny=given.quick)
        base = BASE if on in BENEATH else on
        key = f"{base}, {asked.get('dtype', 'bfloat16')}"
        if key not in probes:
            probes[key] = _probed(
                directory, base, asked.get("dtype", "bfloat16"), given.probe_seconds
            )
        said = predict(directory, name, asked, given.data)
        took = measure(directory, name, asked)
        found[name] = {
            "predicted_seconds": round(said["seconds"], 2),
            "measured_seconds": round(took["seconds"], 2),
            "error": round(said["seconds"] / took["seconds"] - 1, 4),
            "pulse": round(said["pulse"], 3),
            "wall": round(took["wall"], 2),
            "training_seconds": took["training_seconds"],
            "predicted_bytes": said["memory"],
            "measured_bytes": took["memory"],
            "memory_error": round(said["memory"] / took["memory"] - 1, 4),
            "phases": {key: round(value, 2) for key, value in said["phases"].items()},
        }
        each = found[name]
        say(
            f"{name}: {each['predicted_seconds']} s predicted, {each['measured_seconds']} s "
            f"({each['error']:+.1%}; {each['wall']} s on the wall); memory "
            f"{each['memory_error']:+.1%}"
        )
        say(json.dumps(each["phases"]))
    return {
        "configurations": len(found),
        **_errors("", [each["error"] for each in found.values()]),
        **_errors("memory_", [each["memory_error"] for each in found.values()]),
        "clock": "processor seconds of one thread, probe and run alike",
        "probe_seconds": probes,
        "runs": found,
        "quick": given.quick,
    }


def _errors(kind: str, found: list[float]) -> dict[str, float]:
    sizes = [abs(each) for each in found]
    return {
        f"{kind}median_error": round(median(sizes), 4),
        f"{kind}worst_error": round(max(sizes), 4),
    }


def _probed(directory: Path, base: str, dtype: str, seconds: float) -> float:
    command = [sys.executable, "-m", "benchmarks.plan", "--home", str(directory)]
    command += ["--probe-seconds", str(seconds)]
    done = subprocess.run(
        [*command, "--probe", base, dtype], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    found = json.loads(done.stdout.strip().splitlines()[-1])
    say(f"probed {base} in {dtype}: {found['seconds']} s, misfit {found['misfit']:.1%}")
    return float(found["seconds"])


if __name__ == "__main__":
    main()
