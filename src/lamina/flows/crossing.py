"""A request and its events as plain values, which cross to another process and back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lamina.bases.sampling import Sampling
from lamina.core.errors import UsageError
from lamina.flows.elsewhere import error_of, text_of
from lamina.serve.constrain import Grammars, GrammarState
from lamina.serve.request import Event, Finished, Request, Token
from lamina.stack.resolve import ResolvedStack

Piece = tuple[Any, ...]
"""An event."""


def plain(request: Request) -> dict[str, Any]:
    """A request in plain values. Raises UsageError for a constraint that is no grammar: it could
    not be made anew elsewhere."""
    constraint = request.constraint
    if not isinstance(constraint, GrammarState | None):
        raise UsageError(f"replicas know grammars alone, no {type(constraint).__name__}")
    return {
        "stack": request.stack.config.model_dump_json(),
        "label": request.stack.label,
        "prompt": request.prompt,
        "max_new_tokens": request.max_new_tokens,
        "stop_ids": request.stop_ids,
        "sampling": asdict(request.sampling),
        "logprobs": request.logprobs,
        "grammar": None if constraint is None else constraint.grammar,
        "said": request.said,
    }


def request_of(
    asked: Mapping[str, Any], stack: ResolvedStack, grammars: Callable[[], Grammars]
) -> Request:
    """The request of plain values; its grammar, made where there is one, knows what was said.

    Raises UsageError, MissingPartError.
    """
    grammar, said = asked["grammar"], tuple(asked["said"])
    return Request(
        stack=stack,
        prompt=tuple(asked["prompt"]),
        max_new_tokens=asked["max_new_tokens"],
        stop_ids=tuple(asked["stop_ids"]),
        sampling=Sampling(**asked["sampling"]),
        logprobs=asked["logprobs"],
        constraint=None if grammar is None else grammars().of(grammar, said),
        said=said,
    )


def plain_event(event: Event) -> Piece:
    """A token or an end in plain values."""
    if isinstance(event, Token):
        return (event.id,) if event.logprob is None else (event.id, event.logprob, event.top)
    error = None if event.error is None else text_of(event.error)
    return (event.reason, event.prompt_tokens, event.cached_tokens, event.new_tokens, error)


def event_of(piece: Sequence[Any]) -> Event:
    """What `plain_event` told of."""
    if isinstance(piece[0], int):
        return Token(*piece)
    reason, prompt, cached, new, error = piece
    return Finished(reason, prompt, cached, new, None if error is None else error_of(error))
