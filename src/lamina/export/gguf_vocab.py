"""A base's tokenizer.json as GGUF's tokenizer keys: byte-level BPE, or sentencepiece-like BPE."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType

from lamina.bases.identity import TEMPLATE, TOKENIZER, read_json
from lamina.core.errors import UsageError
from lamina.tokens.template import ChatFormat

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {_GPT2: "gpt-2", _LLAMA3: "llama-bpe", _LLAMA3.replace("{1,3}", ""): "qwen2"}
"""llama.cpp's name of a pre-tokenizer by its regular expression."""
_UNMADE = -1e6
"""Score of a token that no merge makes: below every other."""


def add_vocabulary(writer: GGUFWriter, base: Path, rows: int, fmt: ChatFormat) -> None:
    """Write tokens, merges or scores, special ids and the chat template. `rows`: embeddings.

    Raises UsageError for a tokenizer that llama.cpp has no equal of.
    """
    tokenizer = read_json(base / TOKENIZER)
    model = tokenizer["model"]
    if model.get("type") != "BPE":
        raise UsageError(
            f"a tokenizer of type {model.get('type')} is not written as GGUF",
            hint="export it with --to hf, and convert that folder with llama.cpp's converter",
        )
    tokens, types = _tokens(tokenizer, rows)
    if model.get("byte_fallback"):
        scores = _scores(tokens, model["merges"], types)
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        writer.add_token_scores(scores)
        writer.add_token_types(types)
        writer.add_add_space_prefix(False)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_pre(tokenizer.get("pre_tokenizer") or {}))
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        writer.add_token_merges([" ".join(_pair(merge)) for merge in model["merges"]])
    _add_specials(writer, fmt)
    if (base / TEMPLATE).is_file():
        writer.add_chat_template((base / TEMPLATE).read_text(encoding="utf-8"))


def _tokens(tokenizer: Mapping[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Texts and types by id; rows without a token get a name that no text contains."""
    model = tokenizer["model"]
    texts = {int(i): str(text) for text, i in model["vocab"].items()}
    kinds = dict.fromkeys(texts, TokenType.NORMAL)
    if model.get("byte_fallback"):
        kinds |= {i: TokenType.BYTE for i, text in texts.items() if _is_byte(text)}
    for token in tokenizer.get("added_tokens") or ():
        texts[token["id"]] = token["content"]
        kinds[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    unknown = model.get("unk_token")
    if unknown is not None and unknown in model["vocab"] and model.get("byte_fallback"):
        kinds[model["vocab"][unknown]] = TokenType.UNKNOWN
    beyond = sorted(i for i in texts if i >= rows)
    if beyond:
        raise UsageError(
            "the tokenizer has tokens without an embedding",
            faults=[f"{texts[i]!r} ({i}, of {rows} rows)" for i in beyond],
        )
    kind_of = [int(kinds.get(i, TokenType.UNUSED)) for i in range(rows)]
    return [texts.get(i, f"[PAD{i}]") for i in range(rows)], kind_of


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _pair(merge: str | list[str]) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else merge


def _scores(tokens: list[str], merges: list[Any], types: list[int]) -> list[float]:
    """A sentencepiece score for every token: minus the rank of the first merge that makes it.

    llama.cpp joins the neighbours whose joined token scores highest; BPE takes the merge of the
    lowest rank: the same order. Ranks are counted over distinct results, below 2^24, so that
    float32 keeps them apart.
    """
    ranks: dict[str, int] = {}
    for merge in merges:
        ranks.setdefault("".join(_pair(merge)), len(ranks))
    made = [-float(ranks[text]) if text in ranks else _UNMADE for text in tokens]
    return [0.0 if kind == TokenType.BYTE else s for s, kind in zip(made, types, strict=True)]


def _pre(pre: Mapping[str, Any]) -> str:
    """llama.cpp's name for a byte-level pre-tokenizer. Raises UsageError for one it has not."""
    parts = pre.get("pretokenizers", [pre])
    kinds = [part.get("type") for part in parts]
    byte_level = bool(parts) and kinds[-1] == "ByteLevel" and not parts[-1].get("add_prefix_space")
    if byte_level and kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2"
    if byte_level and kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
        return "smollm"
    if byte_level and kinds == ["Split", "ByteLevel"] and not parts[1].get("use_regex", True):
        pattern = (parts[0].get("pattern") or {}).get("Regex")
        if pattern in _SPLITS and parts[0].get("behavior") == "Isolated":
            return _SPLITS[pattern]
    raise UsageError(
        f"llama.cpp has no name for this tokenizer's way to cut text: {kinds}",
        hint="export it with --to hf, and convert that folder with llama.cpp's converter",
    )


def _add_specials(writer: GGUFWriter, fmt: ChatFormat) -> None:
    tokenizer = fmt.tokenizer
    for value, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
    ):
        if value is not None:
            add(int(value))
    if fmt.stop_ids and fmt.stop_ids[0] != tokenizer.eos_token_id:
        writer.add_eot_token_id(int(fmt.stop_ids[0]))
    writer.add_add_bos_token(fmt.bos_id is not None)
    writer.add_add_eos_token(False)
