"""The JSON files of a base's folder in one form: what varies without meaning is taken out."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lamina.bases.identity import DTYPE_NAMES, SPECIAL_TOKENS, TOKENIZER_SWITCHES, token_text

_NAMES_AND_VERSIONS = (
    "_name_or_path",
    "_model_name_or_path",
    "_commit_hash",
    "_from_model_config",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
)


def normal_config(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """A model configuration without names, paths and versions, with the safetensors dtype set."""
    return without_names(config) | {"dtype": DTYPE_NAMES[dtype]}


def without_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without names, paths and versions."""
    return {key: value for key, value in config.items() if key not in _NAMES_AND_VERSIONS}


def normal_tokenizer_config(
    config: Mapping[str, Any], special_map: Mapping[str, Any]
) -> dict[str, Any]:
    """What of tokenizer_config.json (and the older special_tokens_map.json) changes behaviour.

    Tokens become plain strings: tokenizer.json says how each is matched.
    """
    special = {key: token_text(config.get(key, special_map.get(key))) for key in SPECIAL_TOKENS}
    kept = {key: text for key, text in special.items() if text is not None}
    switches = ("model_max_length", *TOKENIZER_SWITCHES)
    kept |= {key: config[key] for key in switches if config.get(key) is not None}
    return kept | {"tokenizer_class": "PreTrainedTokenizerFast"}


def write_json(path: Path, value: Any) -> None:
    """Indented, with sorted keys: the same value gives the same bytes."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
