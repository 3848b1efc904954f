"""Every export target, loaded back and compared with the stack, on two model families.

A stack of two trained layers over each base is written for every target by `lamina export`, which
loads it back with the real tool where it runs here (PEFT, transformers, llama.cpp) and by the
target's own rules where it does not (vLLM's adapter through PEFT, mlx-lm's with numpy, Ollama's
model through llama.cpp). What differs is kept and stated, so that the row has every number.
"""

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import BASE, Log, emit, home, parser, say, versions
from benchmarks.peft_parity import train_stack
from lamina.flows.adapters import export
from lamina.flows.bases import ensure
from lamina.stack.resolve import resolve
from lamina.store.layout import Store

FAMILIES = (BASE, "gemma3-270m")
TARGETS: dict[str, tuple[str, str | None]] = {
    "peft": ("peft", None),
    "hf": ("hf", None),
    "gguf-f16": ("gguf", "f16"),
    "gguf-q8_0": ("gguf", "q8_0"),
    "gguf-q4_k": ("gguf", "q4_k"),
    "gguf-lora": ("gguf-lora", None),
    "ollama-q8_0": ("ollama", "q8_0"),
    "vllm": ("vllm", None),
    "mlx": ("mlx", None),
}
DEPTH = 2


def parities(store: Store, stack: str, work: Path) -> dict[str, dict[str, Any]]:
    """What each target's certificate states, by target."""
    found = {}
    for name, (to, precision) in TARGETS.items():
        with tempfile.TemporaryDirectory(dir=work) as folder:
            out = Path(folder) / "out"
            made = export(store, stack, out, to, Log(), precision=precision, accept_loss=True)
            size = sum(path.stat().st_size for path in out.iterdir())
        found[name] = made["parity"] | {"bytes": size}
        say(f"{stack} {name}: {made['parity']}")
    return found


def worst(name: str, families: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A target's numbers on the family where they are largest."""
    cells = [each["targets"][name] for each in families.values()]
    top = max(cells, key=lambda cell: cell["value"])
    shown = {key: top[key] for key in ("measure", "value", "mean", "limit") if key in top}
    return {"ok": all(cell["ok"] for cell in cells), **shown}


def main() -> None:
    """Export, compare and print."""
    arguments = parser(__doc__)
    arguments.add_argument("--quick", action="store_true", help="the first family alone")
    given = arguments.parse_args()
    families: dict[str, dict[str, Any]] = {}
    with home(given.home) as directory, tempfile.TemporaryDirectory() as temporary:
        store, work = Store.open(directory), Path(temporary)
        for base in FAMILIES[:1] if given.quick else FAMILIES:
            ensure(store, base, Log())
            stack = train_stack(store, work, DEPTH, base)
            family = resolve(store, base).base_config.family
            families[family] = {"base": base, "targets": parities(store, stack, work)}
    row = {
        "targets": {name: worst(name, families) for name in TARGETS},
        "families": families,
        "engines": versions("xllamacpp", "gguf", "peft"),
    }
    emit("export_parity", row, keep=given.keep)


if __name__ == "__main__":
    main()
