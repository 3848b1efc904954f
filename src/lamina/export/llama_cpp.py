"""A GGUF file loaded by llama.cpp itself (through xllamacpp), asked for tokens and likelihoods.

The server listens on 127.0.0.1 at a port of the system's choice, for the block only, and answers
nobody without a key made for it.
"""

import contextlib
import json
import math
import secrets
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from lamina.bases.quiet import quiet
from lamina.core.errors import CheckError, MissingPartError

TOP = 1000
"""Likeliest next tokens that are asked for; those of ours must be among them."""
_TIMEOUT = 600.0


class LlamaCpp:
    """One loaded file. Make it with `loaded`."""

    def __init__(self, server: Any, key: str) -> None:
        self._server = server
        self._key = key
        self._letter: int | None = None
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def next_token(self, ids: Sequence[int]) -> dict[int, float]:
        """Log-probabilities of the TOP likeliest tokens after `ids`, by id.

        They are those of the model. The token that is sampled is bent towards an ordinary letter:
        llama.cpp lists nothing beside half a character or an end of the answer.
        """
        if self._letter is None:
            self._letter = self.tokens("a")[-1]
        answer = self._post(
            "/completion",
            {"prompt": list(ids), "n_predict": 1, "n_probs": TOP, "temperature": 0.0,
             "cache_prompt": True, "logit_bias": [[self._letter, 1e4]]},
        )  # fmt: skip
        found = answer["completion_probabilities"][0]["top_logprobs"]
        logs = {int(token["id"]): token["logprob"] for token in found}
        if any(log is None or not math.isfinite(log) for log in logs.values()):
            raise CheckError("llama.cpp computes numbers that are not finite with this file")
        return {token: float(log) for token, log in logs.items()}

    def prompt_ids(self, messages: Sequence[dict[str, Any]], tools: Sequence[Any]) -> list[int]:
        """Ids of a conversation: the file's own template, rendered and tokenised by llama.cpp."""
        wanted = {"messages": list(messages)}
        if tools:
            wanted["tools"] = [{"type": "function", "function": tool} for tool in tools]
        return self.tokens(self._post("/apply-template", wanted)["prompt"])

    def tokens(self, text: str) -> list[int]:
        """Ids of a text, control tokens in it read as such."""
        answer = self._post(
            "/tokenize", {"content": text, "add_special": True, "parse_special": True}
        )
        return [int(token) for token in answer["tokens"]]

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            self._server.listening_address + path,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"},
        )
        try:
            with self._open(request, timeout=_TIMEOUT) as answer:
                found: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            raise CheckError(f"llama.cpp refuses {path}: {text}") from error
        return found


def version() -> str | None:
    """The installed xllamacpp's version, None where it is not installed."""
    try:
        import xllamacpp
    except ImportError:
        return None
    return str(xllamacpp.__version__)


@contextlib.contextmanager
def loaded(file: Path, *, context: int, adapter: Path | None = None) -> Iterator[LlamaCpp]:
    """Load a GGUF file, with an adapter over it, for a block.

    Keys and values stay in float32 and attention is the plain one (the fused one rounds them to
    float16), so that differences are the file's and not the engine's.
    Raises MissingPartError without xllamacpp, CheckError when llama.cpp refuses the file.
    """
    try:
        import xllamacpp
    except ImportError:
        raise MissingPartError(
            "the export is checked with llama.cpp, which is not installed",
            hint="pip install 'lamina[gguf]'",
        ) from None
    key = secrets.token_hex()
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel = context, 1
    params.warmup, params.verbosity, params.api_keys = False, 0, [key]
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    threads = torch.get_num_threads()
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_gpu_layers = 0
    if adapter is not None:
        info = xllamacpp.CommonAdapterLoraInfo()
        info.path, info.scale = str(adapter), 1.0
        params.lora_adapters = [info]
    try:
        with quiet(swallow_stderr=True):
            server = xllamacpp.Server(params)
    except Exception as error:  # xllamacpp raises whatever llama.cpp throws
        raise CheckError(f"llama.cpp does not load {file.name}: {error}") from error
    try:
        yield LlamaCpp(server, key)
    finally:
        del server
