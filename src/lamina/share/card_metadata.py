"""The YAML at the head of a model card, as the Hub reads it.

Keys and their meaning: https://huggingface.co/docs/hub/model-cards#model-card-metadata. What is not
on record (languages, for instance) is left out rather than guessed.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

from huggingface_hub import ModelCardData

from lamina.share.card_facts import Facts, Form, hub_name
from lamina.share.card_text import one_line

_LIBRARY: dict[Form, str] = {
    "hub": "peft",
    "hub-images": "diffusers",
    "peft": "peft",
    "vllm": "peft",
    "hf": "transformers",
    "gguf": "gguf",
    "gguf-lora": "gguf",
    "ollama": "gguf",
    "mlx": "mlx",
    "diffusers": "diffusers",
    "diffusers-base": "diffusers",
    "kohya": "diffusers",
}
_MERGED: tuple[Form, ...] = ("hf", "gguf", "ollama")
_DATASET = re.compile(r"hf:([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:[/:@].*)?", re.ASCII)
_LICENCES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-
    clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-
    by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-
    sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-
    permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 agpl-3.0 gfdl gpl gpl-2.0
    gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl apple-ascl mpl-2.0 odc-by odbl openrail++
    osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license llama2 llama3
    llama3.1 llama3.2 llama3.3 llama4 gemma unknown other
    """.split()  # noqa: SIM905 - a list would be a page
)
"""What the Hub takes as `license` (https://huggingface.co/docs/hub/repositories-licenses); it
refuses others, which are written as `other` with a name."""


def front_matter(facts: Facts, form: Form) -> str:
    """The block between two lines of `---`, both included."""
    text = ModelCardData(**metadata(facts, form)).to_yaml(line_break="\n")
    return f"---\n{text}\n---"


def metadata(facts: Facts, form: Form) -> dict[str, Any]:
    """The keys that the Hub knows, of plain values."""
    base = hub_name(facts.base.source)
    relation = "adapter" if form not in _MERGED else "finetune" if form == "hf" else "quantized"
    on_hub = {"base_model": one_line(base), "base_model_relation": relation} if base else {}
    datasets = sorted(set(_datasets(facts)))
    results = list(_results(facts))
    index = [{"name": one_line(facts.label), "results": results}] if results else []
    return {
        **on_hub,
        "library_name": _LIBRARY[form],
        "pipeline_tag": _task(facts),
        "tags": ["lamina", *([] if form in _MERGED else ["lora"])],
        **_licence(facts),
        **({"datasets": datasets} if datasets else {}),
        **({"model-index": index} if index else {}),
    }


def _task(facts: Facts) -> str:
    return "text-to-image" if facts.draws else "text-generation"


def _licence(facts: Facts) -> dict[str, str]:
    """One licence where all parts are under the same; `other` with names where they are not.

    Left out where a part's licence is not stated and no other is: nothing is known then.
    """
    parts = [facts.base.config.licence, *(layer.config.licence for layer in facts.layers)]
    stated = sorted({one_line(part).lower() for part in parts if part})
    if not stated:
        return {}
    if len(stated) == 1 and all(parts) and stated[0] in _LICENCES:
        return {"license": stated[0]}
    names = [*stated, *([] if all(parts) else ["not-stated"])]
    return {"license": "other", "license_name": one_line("+".join(names))}


def _datasets(facts: Facts) -> Iterator[str]:
    """Data sets of the Hub that layers learned from."""
    for layer in facts.layers:
        for file in layer.config.data.files if layer.config.data else ():
            match = _DATASET.fullmatch(file.name)
            if match:
                yield match[1]


def _results(facts: Facts) -> Iterator[dict[str, Any]]:
    """The whole stack's results: its row is the last of the matrix."""
    last = facts.results["stacks"][-1] if facts.results["stacks"] else None
    for found in facts.results["cells"]:
        if found["stack"] != last or not math.isfinite(found["value"]):
            continue
        low, high = found["ci"]
        yield {
            "task": {"type": _task(facts)},
            "dataset": {
                "type": "lamina-exam",
                "name": one_line(found["exam"]),
                "config": one_line(found["exam"]),  # readers join results of one type and config
            },
            "metrics": [
                {
                    "type": found["metric"],
                    "value": round(found["value"], 6),
                    "name": f"{found['metric']} (95% interval {low:.4g} to {high:.4g}, "
                    f"n = {found['n']})",
                }
            ],
        }
