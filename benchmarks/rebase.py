"""Carry layers to a sibling base, and to a base of another family and tokenizer.

Sibling: the base after some steps of full fine-tuning on plain text, a full-rank change; the first
two layers of `benchmarks.contributors` (reused where the store has them) are carried with the rungs
copy and project. Family: a layer of short tasks over the bare base, carried to Gemma 3 270M by
distillation, without the layer's data. `retained`: the smallest share of a layer's gain on its
exams that is left. `cost_ratio`: seconds of carrying over seconds of the layers' training; the
examinations are given beside it, as a trained layer is examined too.
"""

import shutil
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import BASE, Log, emit, home, parser, say
from benchmarks.contributors import LAYERS, layer, recipe, rows_file
from benchmarks.gsm8k import first_rows
from lamina.bases.load import load
from lamina.core.recipe import Recipe
from lamina.flows import rebase
from lamina.flows.bases import ensure, pull
from lamina.flows.ladder.carry import Carried
from lamina.stack.compile import base_directory
from lamina.store.layout import Store

SIBLING, FAMILY = "bench-sibling", "gemma3-270m"
TASKS, TASK_ROWS = "train_instruction_induction.jsonl", 1500
"""What the layer for another family learns. Its answers are short and told by the question: how
likely open answers are says more of how the two bases model English than of any layer."""
FULL_STEPS, FULL_LR, FULL_TOKENS = 20, 2e-5, 1024


def sibling(store: Store, work: Path, text: Path, steps: int) -> float | None:
    """Pull the base, fully fine-tuned on text; returns the relative change of its weights.

    None where the store has it already.
    """
    if SIBLING in store.bases():
        return None
    source = base_directory(store, store.bases()[BASE])
    loaded = load(source, dtype=torch.float32)
    model = loaded.model.train()
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.ndim == 2}
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=FULL_LR)
    ids = loaded.tokenizer(text.read_text(encoding="utf-8")[:400_000])["input_ids"]
    for step in range(steps):
        batch_BT = torch.tensor(ids[step * FULL_TOKENS : (step + 1) * FULL_TOKENS]).view(4, -1)
        loss = model(input_ids=batch_BT, labels=batch_BT).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        say(f"sibling step {step}: {loss.item():.3f}")
    changed = sum(float((p.detach() - before[n]).norm() ** 2) for n, p in _matrices(model))
    whole = sum(float(tensor.norm() ** 2) for tensor in before.values())
    out = work / "sibling"
    shutil.rmtree(out, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(out)
    for file in source.iterdir():
        if "token" in file.name or file.suffix == ".jinja":
            shutil.copy(file, out / file.name)
    del model, loaded, optimiser
    pull(store, str(out), SIBLING, Log())
    return (changed / whole) ** 0.5


def _matrices(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return [(n, p) for n, p in model.named_parameters() if p.ndim == 2]


def summary(layers: tuple[Carried, ...]) -> dict[str, Any]:
    """What the report needs of carried layers."""
    trained = sum(c.evidence.retrain_seconds or 0.0 for c in layers)
    kept = [c.evidence.retained for c in layers if c.evidence.retained is not None]
    return {
        "retained": round(min(kept), 4) if kept else None,
        "cost_ratio": round(sum(c.evidence.seconds for c in layers) / trained, 4),
        "examine_ratio": round(sum(c.evidence.examine_seconds for c in layers) / trained, 4),
        "layers": [c.to_json() for c in layers],
    }


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__, data=True)
    arguments.add_argument("--quick", action="store_true", help="few rows, few steps, no Gemma")
    arguments.add_argument("--share", type=float, default=1.0, help="share of the rows")
    arguments.add_argument("--only", choices=("sibling", "family"))
    given = arguments.parse_args()
    given.share = 0.05 if given.quick else given.share
    row: dict[str, Any] = {}
    with home(given.home) as directory:
        store = Store.open(directory)
        ensure(store, BASE, Log())
        work = directory / "bench-data"
        work.mkdir(exist_ok=True)
        if given.only != "family":
            row["sibling"] = to_sibling(store, given, work)
        if given.only != "sibling" and not given.quick:
            row["family"] = to_family(store, given, work)
        emit("rebase", {**row, "share": given.share}, keep=given.keep)


def to_sibling(store: Store, given: Any, work: Path) -> dict[str, Any]:
    """Two layers, one over the other, to a base that was trained a little further."""
    on = BASE
    for kind in list(LAYERS)[:2]:
        name = f"four-on-{kind}"
        layer(store, on, name, rows_file(given.data, work, kind, given.share), recipe(given))
        on = name
    steps = 2 if given.quick else FULL_STEPS
    change = sibling(store, work, given.data / "train_lm_wikitext2_valid.txt", steps)
    near = carried(store, on, SIBLING, "two-on-sibling", "project")
    return {**summary(near), "relative_change": change and round(change, 5)}


def to_family(store: Store, given: Any, work: Path) -> dict[str, Any]:
    """One layer to a base of another family, by what travels with it."""
    ensure(store, FAMILY, Log())
    rows = round(TASK_ROWS * given.share)
    data = first_rows(given.data / TASKS, work / f"tasks-{rows}.jsonl", rows)
    layer(store, BASE, "bench-tasks", str(data), Recipe(held_out=0.1, exams=("loss",)))
    return summary(carried(store, "bench-tasks", FAMILY, "tasks-on-gemma", "distil"))


def carried(store: Store, stack: str, onto: str, name: str, at_most: str) -> tuple[Carried, ...]:
    """Carry a stack and name the result."""
    request = rebase.Request(
        stack=stack, onto=onto, name=name, at_most=at_most, override="benchmark"
    )
    return rebase.rebase(store, request, Log(), lambda: False).layers


if __name__ == "__main__":
    main()
