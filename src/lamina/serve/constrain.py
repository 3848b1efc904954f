"""Grammars for answers: JSON of a schema, calls of tools. By llguidance, token by token.

A grammar is compiled once per tokenizer and kept; each answer gets a copy of its first state.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lamina.core.errors import MissingPartError, UsageError
from lamina.tokens.call_form import CallForm
from lamina.tokens.tools import CALL_OPEN

if TYPE_CHECKING:
    from llguidance import LLMatcher

KEPT = 128
"""Compiled grammars kept for a tokenizer."""
_SHOWN = 500
# As json.dumps spaces it, which is what models have read most; free white space lets a small model
# write blanks for ever.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class GrammarState:
    """A `request.Constraint`: what one answer may say next."""

    def __init__(self, matcher: "LLMatcher", grammar: str) -> None:
        self._matcher = matcher
        self.grammar = grammar
        """From which `Grammars.of` makes another."""

    def fill(self, mask_W: np.ndarray) -> None:
        """Write the allowed tokens as bits into (ceil(vocabulary / 32),) int32, low bit first.

        After a fault only stop tokens are allowed.
        """
        self._matcher.unsafe_compute_mask_ptr(mask_W.ctypes.data, mask_W.nbytes)

    def push(self, token: int) -> None:
        """The token that was drawn."""
        self._matcher.consume_token(token)

    @property
    def ended(self) -> bool:
        """Whether nothing may follow."""
        return bool(self._matcher.is_stopped())

    @property
    def fault(self) -> str | None:
        """Why the grammar gave up before the answer was whole (too many ways to go on), if so."""
        if not self._matcher.is_error():
            return None
        return str(self._matcher.get_error()).partition("\n")[0][:_SHOWN]

    def check(self) -> None:
        """Raise UsageError where the grammar gave up."""
        if self.fault:
            raise UsageError(
                f"the answer's grammar gave up: {self.fault}", hint="use a simpler JSON schema"
            )


class Grammars:
    """Grammars over one tokenizer. Thread-safe; compiling takes up to seconds and drops the GIL.

    `vocabulary`: logits a token has, at least the tokenizer's size. Raises MissingPartError.
    """

    def __init__(self, tokenizer: Any, stop_ids: Sequence[int], vocabulary: int) -> None:
        try:
            from llguidance import LLTokenizer
        except ImportError:
            raise MissingPartError(
                "answers in a given form need llguidance, which is not installed",
                hint="pip install 'lamina[serve]'",
            ) from None
        backend = tokenizer.backend_tokenizer.to_str()
        self._tokenizer: LLTokenizer = LLTokenizer(
            backend, n_vocab=vocabulary, eos_token=list(stop_ids)
        )
        self._special = {
            token.content: index
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.special and token.content
        }
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def schema(self, schema: Mapping[str, Any]) -> GrammarState:
        """An answer that is JSON of this schema. Raises UsageError for one that cannot be used."""
        return self._state(f"start: {_json(schema)}\n")

    def calls(
        self,
        form: CallForm,
        tools: Sequence[str],
        *,
        several: bool,
        otherwise: Mapping[str, Any] | None = None,
    ) -> GrammarState:
        """An answer that calls one of `tools` (compact JSON, as `Example.tools`) with arguments of
        its schema; `several`: or more of them; `otherwise`: or that is JSON of this schema.

        Raises UsageError for schemas that cannot be used.
        """
        calls = 'call ("\\n" call)*' if several and form.repeats else "call"
        start = calls if otherwise is None else f"{calls} | {_json(otherwise)}"
        rules = _call_rules(tools, lambda name: self._text(form.before + name), form)
        return self._state("\n".join([f"start: {start}", *rules, ""]))

    def text_or_calls(
        self, form: CallForm, tools: Sequence[str], *, several: bool
    ) -> GrammarState | None:
        """Any text, in which each call that begins is of one of `tools`, with arguments of its
        schema. None where the form has no mark at which a call begins.

        Raises UsageError for schemas that cannot be used.
        """
        if not form.before.startswith(CALL_OPEN):
            return None
        rest = form.before.removeprefix(CALL_OPEN)
        rules = [
            f"start: (begun call){'*' if several else '?'} TEXT",
            f"begun[lazy]: TEXT {_quoted(CALL_OPEN)}",
            "TEXT: /(.|\\n)*/",
            *_call_rules(tools, lambda name: _quoted(rest + name), form),
        ]
        return self._state("\n".join([*rules, ""]))

    def spelled(self, token: int) -> bytes:
        """A token's own bytes, which may be a part of a character."""
        return bytes(self._tokenizer.decode_bytes([token]))

    def _text(self, text: str) -> str:
        """Text at the start of an answer; a control token that it begins with stays a token."""
        for content, index in self._special.items():
            if text.startswith(content):
                rest = text.removeprefix(content)
                return f"<[{index}]>" + (f" {_quoted(rest)}" if rest else "")
        return _quoted(text)

    def of(self, grammar: str, said: Sequence[int] = ()) -> GrammarState:
        """The state that the grammar of another one has after these tokens, which may come from
        another process over the same tokenizer."""
        state = self._state(grammar)
        for token in said:
            state.push(token)
        return state

    def _state(self, grammar: str) -> GrammarState:
        with self._lock:
            kept = self._compiled.get(grammar)
            if kept is not None:
                self._compiled.move_to_end(grammar)
                return GrammarState(kept.deep_copy(), grammar)
        made = self._compile(grammar)
        with self._lock:
            self._compiled[grammar] = made
            if len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
            return GrammarState(made.deep_copy(), grammar)

    def _compile(self, grammar: str) -> "LLMatcher":
        from llguidance import LLMatcher

        made = LLMatcher(self._tokenizer, grammar, log_level=0)
        if made.is_error():
            said = str(made.get_error()).partition("\n   1 |")[0]
            raise UsageError(
                f"this JSON schema cannot be used: {said.partition('JSON schema: ')[2] or said}"[
                    :_SHOWN
                ]
            )
        return made


def _call_rules(tools: Sequence[str], named: Callable[[str], str], form: CallForm) -> Iterator[str]:
    """`call` and a rule for each tool; `named` gives what stands before and with its name."""
    functions = [json.loads(tool)["function"] for tool in tools]
    yield "call: " + " | ".join(f"call{index}" for index in range(len(functions)))
    for index, function in enumerate(functions):
        name = named(json.dumps(function["name"])[1:-1])
        arguments = _json(_arguments(function))
        yield f"call{index}: {name} {_quoted(form.between)} {arguments} {_quoted(form.after)}"


def _arguments(function: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a function's arguments: an object; without one, an empty one."""
    found = function.get("parameters")
    if found is None:
        return {"type": "object", "additionalProperties": False}
    return {**found, "type": "object"}


def _json(schema: Mapping[str, Any]) -> str:
    try:
        return "%json " + json.dumps({**schema, "x-guidance": _SPACING})
    except (RecursionError, ValueError) as error:
        raise UsageError(f"this JSON schema cannot be used: {error}") from None


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
