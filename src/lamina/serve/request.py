"""What the engine is asked, and what it tells: values that cross from any thread to its own."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from lamina.bases.sampling import Sampling
from lamina.core.errors import LaminaError, UsageError
from lamina.stack.resolve import ResolvedStack

Reason = Literal["stop", "length", "cancelled", "error"]


class Constraint(Protocol):
    """Which tokens may come next, for one request: a grammar's state.

    Called by the engine's own thread only. `fill` and `push` alternate, `fill` first.
    """

    def fill(self, mask_W: np.ndarray) -> None:
        """Write the allowed tokens as bits into (ceil(vocabulary / 32),) int32, low bit first."""

    def push(self, token: int) -> None:
        """The token that was drawn; never one that stops the answer."""

    @property
    def ended(self) -> bool:
        """Whether nothing may follow: the answer is whole."""


@dataclass(frozen=True, eq=False)
class Request:
    """One answer that is asked for."""

    stack: ResolvedStack
    """By digest: a name that moves while this is answered changes nothing."""
    prompt: tuple[int, ...]
    """Token ids, at least one."""
    max_new_tokens: int
    stop_ids: tuple[int, ...] = ()
    """Tokens that end the answer; they are not told."""
    sampling: Sampling = field(default_factory=Sampling)
    logprobs: int | None = None
    """How many likeliest alternatives to tell beside each token's own log-probability (0: only its
    own); None: none of it."""
    constraint: Constraint | None = None
    """It knows of `said` already."""
    said: tuple[int, ...] = ()
    """Tokens of the answer that are told already, by an engine that is no more; it goes on after
    them, and says what it would have said."""


def check(request: Request, *, base: str, vocabulary: int, context: int) -> None:
    """Raise UsageError for what no engine over the base of this digest can answer."""
    if request.stack.base.digest != base:
        raise UsageError(
            f"{request.stack.label} stands on another base than the one served here",
            hint="serve its base, or rebase it: lamina rebase",
        )
    if not request.prompt:
        raise UsageError("an empty prompt", hint="say something")
    if request.max_new_tokens <= len(request.said):
        raise UsageError("an answer of no tokens", hint="ask for one at least")
    if any(not 0 <= token < vocabulary for token in (*request.prompt, *request.said)):
        raise UsageError(f"token ids are from 0 to {vocabulary - 1}")
    total = len(request.prompt) + request.max_new_tokens
    if total > context:
        raise UsageError(
            f"{len(request.prompt)} tokens of prompt and {request.max_new_tokens} of answer: "
            f"together at most {context}",
            hint="say less, or ask for a shorter answer",
        )


@dataclass(frozen=True)
class Token:
    """A token of an answer."""

    id: int
    logprob: float | None = None
    """Natural logarithm, before temperature, penalties and constraints."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens with theirs, best first."""


@dataclass(frozen=True)
class Finished:
    """The last thing that a listener hears."""

    reason: Reason
    prompt_tokens: int
    cached_tokens: int
    """Tokens of the prompt that the prefix cache spared."""
    new_tokens: int
    """Tokens told, `Request.said` among them, without the stop token."""
    error: LaminaError | None = None
    """With reason `error`."""


Event = Token | Finished
Listener = Callable[[Event], None]
"""Called by the engine's thread, in order: tokens, then one `Finished`. Must return at once and
must not raise."""


class Ticket(Protocol):
    """A request on its way."""

    def cancel(self) -> None:
        """Stop it and free what it holds; the listener hears `Finished("cancelled")` unless it has
        heard its `Finished` already. From any thread, any number of times."""


@dataclass(frozen=True)
class Stats:
    """What an engine holds and has done, for metrics and people."""

    running: int
    """Requests in the batch."""
    waiting: int
    """Requests not admitted yet."""
    tokens_in: int
    """Prompt tokens read since the start, cached ones left out."""
    tokens_cached: int
    """Prompt tokens that the prefix cache spared."""
    tokens_out: int
    """Tokens told since the start."""
    steps: int
    """Passes of the base."""
    blocks: int
    """Blocks of the KV cache, in all."""
    blocks_free: int
    """Those that nothing reads and the prefix cache does not keep."""
    layers_loaded: int
    """Layers whose factors are in memory."""
    layer_bytes: int
    """What those take."""
    layers_evicted: int
    """Since the start."""
    replicas: int = 1
    """Processes that answer; the other numbers are sums over them."""


class Serving(Protocol):
    """An engine, as those who serve from it see it."""

    @property
    def context(self) -> int:
        """Most tokens, prompt and answer together, that a request may have."""

    @property
    def vocabulary(self) -> int:
        """Logits a token has."""

    def submit(self, request: Request, listener: Listener) -> Ticket:
        """Queue it. From any thread.

        Raises, before the listener hears anything: UsageError (no prompt, longer than `context`,
        over another base), BusyError (the queue is full, or the engine is draining). Layers that
        cannot be read or do not fit are told later, as `Finished("error")`.
        """

    def stats(self) -> Stats:
        """As of now. From any thread."""

    def drain(self, seconds: float) -> bool:
        """Take nothing new, finish what is there; after `seconds` cancel the rest. Whether all was
        finished in time. The engine's thread has ended then."""
