"""Writes README's and docs' tables from the newest rows in benchmarks/results: no number is typed.

python docs/make_tables.py          # rewrites the files between their table markers
python docs/make_tables.py --check  # exit 1 when one is not up to date
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PARTS = {"rebase": ("sibling", "family"), "images": ("built_minutes",)}
"""Keys that a row lacks where only the other part was measured."""


def _gain(row: dict[str, Any]) -> float:
    speeds: dict[str, float] = row["tokens_per_second"]
    return speeds["two"] / speeds["one"]


def _images(row: dict[str, Any]) -> str:
    losses: dict[str, list[str]] = {}
    for cell in row["matrix"]:
        layer, _, scorer = cell["exam"].partition("/")
        if scorer == "denoise":
            losses.setdefault(layer.removeprefix("bench-"), []).append(f"{cell['value']:.4f}")
    told = "; ".join(f"{layer} {', '.join(values)}" for layer, values in losses.items())
    return (
        f"{told}; 1/{row['smaller']:.0f}; {row['vs_diffusers']:.2f} "
        f"({row['vs_diffusers_cached']:.2f}), in bfloat16 {row['vs_diffusers_bf16']:.2f} "
        f"({row['vs_diffusers_cached_bf16']:.2f}); {row['depth_8_1']:.2f}"
    )


def newest(name: str, of: str = "") -> dict[str, Any] | None:
    """The last row of a benchmark, None where there is none; `of`: over rows from such a file.

    What a part of a benchmark measures stands in the last row of that part.
    """
    path = ROOT / "benchmarks" / "results" / f"{name}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [row for row in map(json.loads, lines) if of in str(row.get("rows", of))]
    parts = {key: row[key] for row in rows for key in PARTS.get(name, ()) if key in row}
    return rows[-1] | parts if rows else None


def percent(cell: dict[str, Any]) -> str:
    """`68% [56, 78]`."""
    low, high = (round(100 * v) for v in cell["ci"])
    mark = {"better": " ▲", "worse": " ▼"}.get(cell.get("change") or "", "")
    return f"{100 * cell['value']:.0f}% [{low}, {high}]{mark}"


def quickstart_table() -> str:
    """The exam matrix and the cost of each layer."""
    row = newest("quickstart")
    if row is None:
        return "(no row yet: `python -m benchmarks.quickstart --keep`)"
    cells = {(cell["stack"], cell["exam"]): cell for cell in row["cells"]}
    sizes = {cell["exam"]: cell["n"] for cell in row["cells"]}
    lines = ["| stack | " + " | ".join(f"{e} (n = {sizes[e]})" for e in row["exams"]) + " |"]
    lines.append("| --- |" + " --- |" * len(row["exams"]))
    for stack in row["stacks"]:
        texts = [percent(cells[(stack, exam)]) for exam in row["exams"]]
        lines.append(f"| {stack} | " + " | ".join(texts) + " |")
    legend = "Right answers, with 95% intervals; ▲ ▼ significantly better or worse than the row"
    lines += ["", f"{legend} above (paired test).", ""]
    for layer in row["layers"]:
        lines.append(
            f"`{layer['name']}`: {layer['seconds'] / 60:.1f} minutes of training, "
            f"{layer['parameters']:,} parameters, {layer['bytes'] / 1e6:.1f} MB, "
            f"{layer['reduction']:.0f} times smaller than the base.\n"
        )
    lines.append(
        f"All in all {row['seconds'] / 60:.1f} minutes on {row['hardware']['cores']} cores, "
        f"{row['peak_gb']} GB at its peak (`python -m benchmarks.quickstart`)."
    )
    return "\n".join(lines)


def benchmark_table() -> str:
    """One line a benchmark."""
    lines = ["| what | measured | command |", "| --- | --- | --- |"]

    def add(what: str, name: str, text: Callable[[dict[str, Any]], str], of: str = "") -> None:
        row = newest(name, of)
        if row is not None:
            options = f" --rows-of {of}" if of else ""
            lines.append(f"| {what} | {text(row)} | `python -m benchmarks.{name}{options}` |")

    add(
        "GSM8K, 1,000 rows: held-out loss of base and stack, nats a token",
        "gsm8k",
        lambda r: (
            f"{r['base_loss']:.3f} to {r['stack_loss']:.3f} (change {r['ci_delta'][0]:.3f} "
            f"to {r['ci_delta'][1]:.3f}), {r['minutes']:.1f} minutes, {r['peak_gb']} GB"
        ),
    )
    add(
        "500 rows of dolly to an examined, named layer; the same command again; with a handful of "
        "rows edited and added; such rows alone by `lamina update`",
        "iterate",
        lambda r: (
            f"{r['first_s']:.0f} s ({r['tokens']:,} tokens, {r['tokens_per_second']:.0f} a second, "
            f"{r['share']['steps']:.0%} of the time in steps); {r['again_s']:.1f} s; "
            f"{r['edited_s']:.0f} s; {r['updated_s']:.0f} s"
        ),
    )
    add(
        "two workers on two hosts beside one: an update's largest difference (float32), tokens/s, "
        "megabytes a step beside the factors'; layers farmed on two processors beside one after "
        "another; kill -9 of workers, jobs and farms, and what was lost",
        "ray",
        lambda r: (
            f"{r['dp_max_rel']:.1e}; {_gain(r['together']['bfloat16']):.1f} times in bfloat16, "
            f"{_gain(r['together']['float32']):.1f} in float32; {r['bytes_per_step'] / 1e6:.1f} "
            f"beside {r['together']['float32']['factors_bytes'] / 1e6:.1f}; {r['farm']['layers']} "
            f"in {r['farm']['farm_s']:.0f} and {r['farm']['serial_s']:.0f} s; {r['killed']}, "
            f"{r['lost']} lost"
        ),
    )
    add(
        "time of a training step at depth 16 over depth 0",
        "depth",
        lambda r: f"{r['ratio_16_0']:.3f}",
    )
    add(
        "stacks of 1, 2, 4 layers exported, one adapter imported: largest relative difference of "
        "logits to PEFT",
        "peft_parity",
        lambda r: f"float32 {r['max_rel_f32']:.1e}, bfloat16 {r['max_rel_bf16']:.1e}",
    )
    add(
        "exports loaded back, two families: largest relative difference of logits (PEFT's, vLLM's, "
        "mlx-lm's adapters), worst and mean difference of likely tokens' log-probabilities "
        "(llama.cpp)",
        "export_parity",
        _exports,
    )
    add(
        "imports: one LoRA from PEFT's, GGUF, mlx-lm's and kohya's files, largest relative "
        "difference of logits to PEFT; the same merged in float32 and bfloat16 and taken out "
        "again: rank, share of the update lost; a DoRA folded at rank 16 and 64, linears tuned "
        "themselves at rank 128: share of the difference lost, logits",
        "imports",
        _imports,
    )
    add(
        "kill -9 at random moments",
        "crash",
        lambda r: f"{r['kills']} kills, {r['resumed']} resumed, {r['lost']} lost",
    )
    add(
        "cold start, seconds (100 stacks in the store)",
        "cold_start",
        lambda r: (
            f"--help {r['help_s']}, list {r['list_s']}, log {r['log_s']}, "
            f"import lamina {r['import_s']}"
        ),
    )
    _training(add)
    _bases(add)
    _current(add)
    _serving(add)
    _sharing(add)
    return "\n".join(lines)


def _imports(row: dict[str, Any]) -> str:
    cases = row["cases"]
    merged = [cases[f"merged in {word}"] for word in ("float32", "bfloat16")]
    near = [cases[name] for name in ("dora at rank 16", "dora at rank 64", "tuned in float32")]
    return "; ".join(
        [
            f"{row['worst_exact_logits']:.1e}",
            ", ".join(f"rank {each['rank']}, {each['lost']:.1e}" for each in merged),
            ", ".join(f"{each['error']:.2f} ({each['logits']:.1e})" for each in near),
        ]
    )


def _exports(row: dict[str, Any]) -> str:
    cells = row["targets"]
    logits = max(cells[name]["value"] for name in ("peft", "vllm", "mlx"))
    files = ("gguf-f16", "gguf-q8_0", "gguf-q4_k", "gguf-lora")
    likely = (f"{n} {cells[n]['value']:.2g}, {cells[n]['mean']:.1g}" for n in files)
    beyond = [name for name, cell in cells.items() if not cell["ok"]]
    return f"{logits:.1e}; {'; '.join(likely)}; beyond the limit: {', '.join(beyond) or 'none'}"


def _training(add: Callable[..., None]) -> None:
    """The lines about the training step."""
    for of, rows in (("gsm8k", "GSM8K"), ("dolly", "dolly")):
        add(
            f"seconds of training to the same held-out loss ({rows}), beside TRL as it comes, TRL "
            "tuned by hand, a bare PEFT loop; share of the bfloat16 products' roofline; memory "
            "beside TRL's",
            "train",
            lambda r: (
                f"{r['vs_trl_default']:.1f}, {r['vs_tuned']:.1f}, {r['vs_peft_loop']:.1f} times "
                f"faster ({r['tokens_per_second']['lamina']:.0f} tokens/s); {r['roofline']:.0%}; "
                f"{r['memory_vs_trl']:.0%} ({r['peak_bytes']['lamina'] / 1e9:.1f} GB)"
            ),
            of=of,
        )
    add(
        "a training step on a GPU, random weights in llama's shape, beside PEFT's in the same run: "
        "tokens a second, share of the fastest bfloat16 product, memory",
        "gpu",
        _gpu,
    )
    add(
        "peak memory of training predicted before it starts, beside what it took: largest error, "
        "configurations",
        "memory",
        lambda r: f"{r['worst_error']:.0%}, {len(r['configurations'])}",
    )
    add(
        "time of a whole `lamina train` as `lamina plan` says it, beside what it took: median and "
        "largest error; of memory; configurations",
        "plan",
        lambda r: (
            f"{r['median_error']:.0%}, {r['worst_error']:.0%}; {r['memory_median_error']:.0%}, "
            f"{r['memory_worst_error']:.0%}; {r['configurations']}"
        ),
    )


def _sharing(add: Callable[[str, str, Callable[[dict[str, Any]], str]], None]) -> None:
    """The lines about other places."""
    add(
        "a registry: bytes moved when a 10-layer stack goes over a 9-layer one, times the layer's, "
        "pushed and pulled; MB/s beside oras' client, which neither checks nor syncs what it pulls "
        "(made to sync); transfers under faults",
        "share",
        lambda r: (
            f"{r['moved_over_layer_push']:.4f}, {r['moved_over_layer_pull']:.4f}; push "
            f"{r['push_mb_s']:.0f} ({r['push_vs_oras']:.2f} times), pull {r['pull_mb_s']:.0f} "
            f"({r['pull_vs_oras']:.2f}, {r['pull_vs_oras_synced']:.2f}); {r['transfers']} with "
            f"{r['faults']:,} faults, {r['corrupt']} corrupt"
        ),
    )


def _gpu(row: dict[str, Any]) -> str:
    texts = []
    for shape, found in row["shapes"].items():
        ours, theirs = found["lamina"], found["peft"]
        texts.append(
            f"{row['device']}, {shape.upper()} parameters: {ours['tokens_per_second']:,.0f} "
            f"({found['speed_vs_peft']} times PEFT's), {ours['mfu']:.0%} ({theirs['mfu']:.0%}), "
            f"{ours['peak_bytes'] / 1e9:.0f} GB ({theirs['peak_bytes'] / 1e9:.0f})"
        )
    return "; ".join(texts)


def _bases(add: Callable[[str, str, Callable[[dict[str, Any]], str]], None]) -> None:
    """The lines about bases that are packed or left in the store."""
    add(
        "a base in 4 and in 8 bits beside bfloat16: weights, tokens/s, held-out loss untrained and "
        "trained, nats a token",
        "quantised",
        lambda r: "; ".join(
            f"{kind} {r[kind]['weights_vs_plain']:.0%}, {r[kind]['speed_vs_plain']:.0%}, "
            f"{r[kind]['loss_untrained_vs_plain']:+.3f} and {r[kind]['loss_trained_vs_plain']:+.3f}"
            for kind in ("nf4", "int8")
        ),
    )
    add(
        "a base larger than the memory at hand, left in the store: parameters, weights, hard limit "
        "(RLIMIT_DATA), peak resident set, seconds a step; the same factors as in memory at a size "
        "that fits",
        "large",
        lambda r: (
            f"{r['parameters'] / 1e9:.2f}G, {r['weights_bytes'] / 1e9:.1f} GB, "
            f"{r['limit_bytes'] / 1e9:.2f} GB, {r['peak_bytes'] / 1e9:.2f} GB, "
            f"{r['step_seconds']:.1f} s for {r['tokens_a_step']} tokens; "
            f"{'to the bit' if r['bit_exact'] else 'NO'}"
        ),
    )
    add(
        "a base shared out over two workers of one machine beside whole in each: resident set, "
        "steps, gigabytes gathered a step; the same factors",
        "sharded",
        lambda r: (
            f"{r['shared']['parameters'] / 1e9:.2f}G, {r['shared']['peak_bytes'] / 1e9:.2f} GB "
            f"beside {r['whole']['peak_bytes'] / 1e9:.2f}, {r['ratio']:.1f} times as long, "
            f"{r['shared']['gathered_a_step'] / 1e9:.1f} GB; "
            f"{'to the bit' if r['bit_exact'] else 'NO'}"
        ),
    )


def _current(add: Callable[[str, str, Callable[[dict[str, Any]], str]], None]) -> None:
    """The lines about keeping a stack current."""
    add(
        "a stream of facts that change, updated period by period: accuracy beside a layer "
        "retrained each time, cost, forgetting beside naive training",
        "stream",
        lambda r: (
            f"new {r['new_vs_retrain']:.0%}, kept {r['kept_vs_retrain']:.0%} of retraining's, at "
            f"{r['cost_ratio']:.0%} of its cost; {r['forgetting_vs_naive']} of naive forgetting "
            f"({r['products']} products, {r['facts']} facts)"
        ),
    )
    add(
        "four layers by four contributors: inherited exams significantly worse, of 6; smallest "
        "gain beside the layer alone on the base",
        "contributors",
        lambda r: (
            f"{r['inherited_worse']} (without rehearsal "
            f"{r['inherited_worse_without_rehearsal']}); {r['min_gain_ratio']:.0%}"
        ),
    )
    add(
        "layer 2 of 4 replaced, the stack refreshed: cost and exams beside retraining layers 2-4",
        "refresh",
        lambda r: f"{r['cost_ratio']:.0%} of the cost, {r['exam_ratio']:.0%} of the gain",
    )
    add(
        "layers carried to a sibling base; to Gemma 3 270M by distillation: gain kept, cost beside "
        "training",
        "rebase",
        lambda r: "; ".join(
            f"{name} {r[name]['retained']:.0%} at {r[name]['cost_ratio']:.1%}"
            for name in ("sibling", "family")
            if name in r
        ),
    )
    add(
        "two parallel layers merged into one: share of each one's gain that is left, by method",
        "merge",
        lambda r: "; ".join(
            f"{name} " + " and ".join(f"{kept:.0%}" for kept in found["kept"].values())
            for name, found in r["methods"].items()
        ),
    )
    add(
        "eight layers of rank 16 squashed, shapes of a 7B model",
        "squash",
        _squash,
    )
    add(
        "a style and a subject over it, on a small latent diffusion base: denoising loss on the "
        "exam of each, base, style, both; a layer's size beside the base's; a step of diffusers' "
        "own script with peft over ours (with its latents computed before); a step over eight "
        "layers over one over none",
        "images",
        _images,
    )


def _serving(add: Callable[[str, str, Callable[[dict[str, Any]], str]], None]) -> None:
    """The lines about serving."""
    add(
        "32 requests at once, a stack of rank 16 each, beside one stack for all; times the tokens "
        "a second of transformers without adapters, PEFT's `adapter_names`, llama.cpp (f16) with "
        "an adapter a request; one request beside transformers, llama.cpp f16 and q8_0",
        "serve",
        lambda r: (
            f"{r['tokens_s']['many']:.0f} tokens/s, {r['many_vs_one']:.2f} of one stack's "
            f"({r['many_bytes_vs_one']:.2f} with layers in 8 bits); "
            f"{r['vs_transformers']:.1f}, {r['vs_peft']:.0f}, {r['vs_llamacpp']:.1f} times; "
            f"{r['tokens_s']['single']:.0f} tokens/s: {r['single_vs_transformers']:.1f}, "
            f"{r['single_vs_llamacpp']:.2f}, {r['single_vs_llamacpp_q8_0']:.2f} times"
        ),
    )
    add(
        "streaming clients on one server, one request in twenty left before its end: answers, each "
        "compared with what its stack says alone; growth of memory; SIGTERM under that load",
        "serve_load",
        lambda r: (
            f"{r['clients']} clients, {r['stacks']} stacks, {r['minutes']:.0f} minutes: "
            f"{r['answers']:,} answers, {r['lost']} lost, {r['crossed']} crossed; "
            f"{r['rss_growth']:+.1%}; {r['drain']['finished']} finished, "
            f"{r['drain']['told']} told, {r['drain']['lost']} lost"
        ),
    )
    add(
        "a thousand stacks on one server, asked by Zipf's law, layers in little memory: start, "
        "first token of a stack that was not in memory and of one asked before, memory",
        "serve_zipf",
        lambda r: (
            f"{r['stacks']:,} stacks, {r['asked']} asked, {r['layers_evicted']} layers evicted: "
            f"{r['cold_start_s']:.1f} s; {r['first_new_s']['p50']:.2f} s, "
            f"{r['first_known_s']['p50']:.2f} s (medians, {r['clients']} clients); "
            f"{r['rss_mb']:,} MB, {r['layer_mb']:.0f} of them layers"
        ),
    )


def _squash(row: dict[str, Any]) -> str:
    exact = (
        f"relative error {row['rel_error']:.1e}, peak {row['peak_over_factors']:.1f} x the "
        f"factors, {row['seconds']:.0f} s"
    )
    share = row["ship8_of_64"]
    return exact if share is None else f"{exact}; rank 64 shipped as 8 keeps {share:.1%} of a gain"


def image_matrix() -> str:
    """Every exam of a style and of a subject over it, on base, style and both."""
    row = newest("images")
    if row is None:
        return "(no row yet: `python -m benchmarks.images --keep`)"
    cells = {(cell["stack"], cell["exam"]): cell for cell in row["matrix"]}
    stacks = list(dict.fromkeys(stack for stack, _ in cells))
    lines = ["| exam | questions | " + " | ".join(stacks) + " |"]
    lines.append("| --- | --- |" + " --- |" * len(stacks))
    for exam in dict.fromkeys(exam for _, exam in cells):
        texts = [f"{_value(cells[(stack, exam)])}" for stack in stacks]
        lines.append(f"| {exam} | {cells[(stacks[0], exam)]['n']} | " + " | ".join(texts) + " |")
    lines += [
        "",
        "`denoise` is a loss, the others are right answers; with 95% intervals. The base was built "
        f"in {row['built_minutes']:.0f} minutes on {row['hardware']['cores']} cores "
        "(`python -m benchmarks.images`).",
    ]
    return "\n".join(lines)


def _value(cell: dict[str, Any]) -> str:
    return (
        f"{cell['value']:.3f} {cell['text']}" if cell["exam"].endswith("denoise") else percent(cell)
    )


FILES = ("README.md", "docs/images.md")
TABLES = {"quickstart": quickstart_table, "benchmarks": benchmark_table, "images": image_matrix}


def rewritten(text: str) -> str:
    """The text with every marked table made anew."""
    for name, make in TABLES.items():
        begin, end = f"<!-- table {name} -->", "<!-- end -->"
        pattern = re.compile(rf"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        replacement = f"{begin}\n{make()}\n{end}"
        text = pattern.sub(lambda _, r=replacement: r, text)
    return text


def main() -> int:
    """Rewrite or check the files."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--check", action="store_true")
    given = arguments.parse_args()
    stale = 0
    for path in (ROOT / name for name in FILES):
        old = path.read_text(encoding="utf-8")
        new = rewritten(old)
        stale += old != new
        if not given.check:
            path.write_text(new, encoding="utf-8")
    return int(given.check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
