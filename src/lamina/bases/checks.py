"""What must hold of a folder before it is a base: architecture, shapes, vocabulary, template."""

from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lamina.bases.chatml import chatml, choose_markers
from lamina.bases.families import backbone, linears
from lamina.bases.folder import GENERATION
from lamina.bases.header import read_entries
from lamina.bases.identity import CONFIG, TEMPLATE, TOKENIZER, read_json, weight_files
from lamina.bases.load import load_tokenizer
from lamina.bases.normal import write_json
from lamina.bases.quantised import packed_names, quantisation
from lamina.bases.quiet import quiet
from lamina.bases.shell import check_sizes
from lamina.core.errors import BaseError

_CAUSAL = ("ForCausalLM", "LMHeadModel")


def check_base(folder: Path) -> None:
    """Refuse a folder whose architecture, tensor shapes or vocabulary cannot work.

    Builds the model without memory for its weights and compares it with the files' headers.
    Raises BaseError.
    """
    config = read_json(folder / CONFIG)
    check_causal(config, folder.name)
    check_sizes(folder)
    model = _skeleton(folder)
    modules = linears(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    entries = {e.name: e.shape for path in weight_files(folder) for e in read_entries(path)}
    kind = quantisation(config)
    packed = frozenset() if kind is None else packed_names(modules, kind)
    faults = [f"{name}: is not there" for name in sorted(packed - set(entries))]
    faults += [
        f"{name}: the file has {shape}, the architecture {shapes[name]}"
        for name, shape in sorted(entries.items())
        if name in shapes and name not in packed and shape != shapes[name]
    ]
    if not set(entries) & set(shapes):
        faults.append("no tensor of the files belongs to the architecture")
    if faults:
        raise BaseError(
            f"the weights do not fit {CONFIG}",
            faults=faults,
            hint="the files belong to different models; fetch them again from one place",
        )
    check_vocabulary(folder, rows=backbone(model).get_input_embeddings().weight.shape[0])  # type: ignore[operator]


def check_causal(config: dict[str, Any], what: str) -> None:
    """Raise BaseError unless the configuration is one of a causal language model."""
    family = config.get("model_type")
    named = config.get("architectures") or []
    known = str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(family, ""))
    if (
        not known.endswith(_CAUSAL)
        or (named and not any(str(name).endswith(_CAUSAL) for name in named))
        or not isinstance(config.get("vocab_size"), int)
    ):
        raise BaseError(
            f"{what} is not a causal language model that transformers knows: "
            f"model_type {family!r}, architectures {named!r}",
            hint="use a decoder-only text model, for instance of the llama, qwen or gemma kind",
        )


def check_vocabulary(folder: Path, *, rows: int) -> None:
    """Raise BaseError when the tokenizer can produce an id that has no row in the embedding."""
    vocabulary = load_tokenizer(folder).get_vocab()
    highest = max(vocabulary.values(), default=-1)
    if highest < 0:
        raise BaseError("the tokenizer has no vocabulary", hint="fetch tokenizer.json again")
    if highest >= rows:
        beyond = sorted(token for token, number in vocabulary.items() if number >= rows)
        raise BaseError(
            f"the tokenizer has ids up to {highest}, the embedding only {rows} rows",
            faults=[f"{token!r}: id {vocabulary[token]}" for token in beyond],
            hint="the tokenizer belongs to another model, or tokens were added without resizing "
            "the embedding; use the tokenizer that the weights were trained with",
        )


def ensure_template(folder: Path) -> tuple[Literal["own", "chatml"], tuple[str, ...]]:
    """Put ChatML in where the folder has no chat template; returns the origin and notes.

    What ends a turn then also ends generation (`generation_config.json`). Raises BaseError.
    """
    if (folder / TEMPLATE).is_file():
        return "own", ()
    tokenizer = load_tokenizer(folder)
    markers = choose_markers(_special_tokens(folder), tokenizer.eos_token)
    bos = _adds_bos(tokenizer)
    (folder / TEMPLATE).write_text(chatml(markers, bos=bos), encoding="utf-8")
    if markers.single:
        _end_generation_at(folder, tokenizer.convert_tokens_to_ids(markers.end))
    said = f"no chat template: {markers.note}"
    return "chatml", (said + (f", after {tokenizer.bos_token}" if bos else ""),)


def _special_tokens(folder: Path) -> list[str]:
    """Texts of the special tokens in tokenizer.json, in the order of their ids.

    Reserved tokens that a converted tokenizer lists without the special flag count too: they are
    matched whole before anything else, which is what a marker needs.
    """
    added = Tokenizer.from_file(str(folder / TOKENIZER)).get_added_tokens_decoder()
    return [added[number].content for number in sorted(added)]


def _adds_bos(tokenizer: Any) -> bool:
    """Whether plain tokenisation starts a text with the begin-of-text token."""
    ids = tokenizer("a")["input_ids"]
    return bool(tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id])


def _end_generation_at(folder: Path, token: int) -> None:
    path = folder / GENERATION
    settings = read_json(path) if path.is_file() else {}
    given = settings.get("eos_token_id", read_json(folder / CONFIG).get("eos_token_id"))
    ends = given if isinstance(given, list) else [] if given is None else [given]
    write_json(path, settings | {"eos_token_id": list(dict.fromkeys([*ends, token]))})


def _skeleton(folder: Path) -> torch.nn.Module:
    """The architecture on the meta device: shapes without memory."""
    try:
        with quiet(), torch.device("meta"):
            config = AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            model: torch.nn.Module = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # a configuration can be wrong in as many ways as there are models
        raise BaseError(
            f"no model can be built from {CONFIG}: {type(error).__name__}: {error}",
            hint="check the file against the model's original",
        ) from error
    return model
