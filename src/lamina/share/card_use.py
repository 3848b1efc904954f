"""How to use the files that a model card lies beside: commands that other tools' users paste."""

import json
from collections.abc import Sequence

from lamina.share.card_facts import Facts, Form, hub_commit, hub_name
from lamina.share.card_text import one_line, shell

WHAT: dict[Form, str] = {
    "hub": "one PEFT adapter of all its layers, with the layers themselves under `lamina/`",
    "hub-images": "one LoRA file of all its layers, with the layers themselves under `lamina/`",
    "peft": "one PEFT adapter of all its layers",
    "hf": "a plain model with the layers merged in",
    "gguf": "a GGUF model with the layers merged in",
    "gguf-lora": "a GGUF adapter of all its layers",
    "ollama": "a GGUF model with the layers merged in, and a Modelfile",
    "vllm": "one PEFT adapter of one rank, as vLLM takes it",
    "mlx": "an adapter for mlx-lm",
    "diffusers": "one LoRA file of all its layers, with diffusers' names",
    "diffusers-base": "the base's pipeline, as diffusers reads it",
    "kohya": "one LoRA file of all its layers, with kohya's names",
}
HERE = "THIS_FOLDER"
"""Stands in commands for where the card lies: an export does not know where it will be put."""
BASE = "BASE_FOLDER"
"""Stands for the base where it is none of the Hub's."""


def section(facts: Facts, form: Form) -> list[str]:
    """The lines of the card's section."""
    lines = ["## How to use it", ""]
    if hub_name(facts.base.source) is None and form != "diffusers-base":
        lines += [
            f"The base is none of the Hub's: `{BASE}` is the folder that `lamina export BASE "
            f"{BASE} --to {'diffusers-base' if facts.draws else 'hf'}` writes. Check its identity; "
            "a model of the same name may be another.",
            "",
        ]
    here = one_line(facts.where or HERE)
    match form:
        case "hub" | "peft" | "vllm":
            lines += [*_python(facts, here), *_vllm(facts, here), *_llama_cpp()]
        case "hf":
            lines += [*_merged(here), *_sh(f"vllm serve {shell(here)}")]
        case "gguf":
            lines += _sh(f"llama-server -m {shell(here)}/model-PRECISION.gguf --jinja")
        case "gguf-lora":
            lines += _sh(
                f"lamina export BASE {BASE} --to gguf",
                f"llama-server -m {BASE}/model-f16.gguf --lora {shell(here)}/adapter.gguf --jinja",
            )
        case "ollama":
            lines += _sh(f"ollama create NAME -f {shell(here)}/Modelfile")
        case "mlx":
            over = f"--model {BASE} --adapter-path {shell(here)}"
            lines += _sh(f"mlx_lm.generate {over} --prompt 'Hello'")
        case "hub-images" | "diffusers" | "kohya" | "diffusers-base":
            lines += _diffusers(facts, form, here)
    return [*lines, *_lamina(facts, form, here)]


def _python(facts: Facts, here: str) -> list[str]:
    """PEFT over the base, at the commit that the layers were trained on."""
    return [
        "With PEFT and transformers:",
        "",
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"base = AutoModelForCausalLM.from_pretrained({_base_arguments(facts)})",
        f"model = PeftModel.from_pretrained(base, {json.dumps(here)})",
        f"tokenizer = AutoTokenizer.from_pretrained({_base_arguments(facts)})",
        "```",
        "",
    ]


def _diffusers(facts: Facts, form: Form, here: str) -> list[str]:
    """diffusers over the base's pipeline."""
    base = here if form == "diffusers-base" else hub_name(facts.base.source) or BASE
    ours = "pytorch_lora_weights.safetensors"
    file = {"hub-images": ours, "diffusers": ours, "kohya": "lora.safetensors"}.get(form)
    lines = [
        "With diffusers:",
        "",
        "```python",
        "from diffusers import DiffusionPipeline",
        "",
        f"pipe = DiffusionPipeline.from_pretrained({json.dumps(one_line(base))})",
    ]
    if file is not None:
        lines.append(f"pipe.load_lora_weights({json.dumps(here)}, weight_name={json.dumps(file)})")
    return [*lines, 'image = pipe("a red fox").images[0]', "```", ""]


def _base_arguments(facts: Facts) -> str:
    name, commit = hub_name(facts.base.source), hub_commit(facts.base.source)
    pinned = f", revision={json.dumps(one_line(commit))}" if name and commit else ""
    return json.dumps(one_line(name or BASE)) + pinned


def _merged(here: str) -> list[str]:
    return [
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"model = AutoModelForCausalLM.from_pretrained({json.dumps(here)})",
        f"tokenizer = AutoTokenizer.from_pretrained({json.dumps(here)})",
        "```",
        "",
    ]


def _vllm(facts: Facts, here: str) -> list[str]:
    """vLLM's launch line, for an adapter that it takes."""
    most = facts.max_lora_rank
    if most is None:
        return ["With vLLM: `lamina export STACK DIR --to vllm` gives it one rank throughout.", ""]
    base = shell(hub_name(facts.base.source) or BASE)
    adapter = f"--lora-modules stack={shell(here)}"
    line = f"vllm serve {base} --enable-lora --max-lora-rank {most} {adapter}"
    return ["With vLLM:", "", *_sh(line)]


def _llama_cpp() -> list[str]:
    return [
        "With llama.cpp or Ollama, from a store that has the stack:",
        "",
        *_sh(
            "lamina export STACK FOLDER --to gguf  # llama-server -m FOLDER/model-f16.gguf --jinja",
            "lamina export STACK FOLDER --to ollama  # ollama create NAME -f FOLDER/Modelfile",
        ),
    ]


def _lamina(facts: Facts, form: Form, here: str) -> list[str]:
    if form in ("hub", "hub-images"):
        return [
            f"With lamina, which restores `{facts.stack}` itself: layers apart, with exams and "
            "evidence.",
            "",
            *_sh(
                f"lamina pull hf:{shell(here)} --as NAME",
                "lamina draw NAME 'a red fox'" if facts.draws else "lamina chat NAME",
            ),
        ][:-1]
    return [f"With lamina: the stack that this was made from is `{facts.stack}`."]


def _sh(*lines: str) -> Sequence[str]:
    return ["```sh", *lines, "```", ""]
