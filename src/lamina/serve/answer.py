"""One request on its way through the engine."""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np
import torch
from torch import Tensor

from lamina.bases.sampling import Drawer
from lamina.core.errors import LaminaError
from lamina.serve.batch import BLOCK, Loaded, Span
from lamina.serve.blocks import Blocks
from lamina.serve.request import Event, Finished, Listener, Reason, Request, Token

_LOG = logging.getLogger(__name__)


class Answer:
    """Tokens, the blocks that hold their keys and values, and who is told of new ones.

    Touched by the engine's thread alone, but for `cancelled`.
    """

    def __init__(
        self, request: Request, listener: Listener, layers: Sequence[Future[Loaded]]
    ) -> None:
        self.request, self.listener = request, listener
        self.tokens = [*request.prompt, *request.said]
        self.computed = 0
        """Tokens whose keys and values are in the cache."""
        self.blocks: list[int] = []
        self.cached = 0
        """Tokens of the prompt that were found there."""
        self.cancelled = threading.Event()
        self._layers = layers
        self._drawer = Drawer(request.sampling, request.prompt)
        for token in request.said:
            self._drawer.took(token)
        self._node = 0
        self._remembered = 0
        """Blocks that the prefix tree knows of."""

    @property
    def new_tokens(self) -> int:
        """Tokens told."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def ready(self) -> bool:
        """Whether its layers are in memory, or have failed to come."""
        return all(layer.done() for layer in self._layers)

    @property
    def layers(self) -> list[Loaded]:
        """Its layers' factors. Raises what loading them raised."""
        return [layer.result() for layer in self._layers]

    # -- the cache

    def begin(self, cache: Blocks) -> None:
        """Find the longest remembered beginning."""
        found = cache.match(self.request.stack.digest, self.tokens)
        self.blocks, self._node = found.blocks, found.node
        self._remembered = len(found.blocks)
        self.computed = len(found.blocks) * BLOCK
        if not self.new_tokens:
            self.cached = self.computed

    def missing(self, count: int) -> int:
        """Blocks that `count` more tokens need beyond those at hand."""
        return -(-(self.computed + count) // BLOCK) - len(self.blocks)

    def span(self, count: int) -> Span:
        """The next `count` tokens to read. Its blocks are there."""
        end = self.computed + count
        ids = self.tokens[self.computed : end]
        wanted = end == len(self.tokens)
        return Span(ids, self.computed, self.blocks, self.layers, wanted)

    def read(self, count: int, cache: Blocks) -> None:
        """`count` tokens have been read; full blocks are remembered."""
        self.computed += count
        while (self._remembered + 1) * BLOCK <= self.computed:
            start = self._remembered * BLOCK
            tokens = self.tokens[start : start + BLOCK]
            block = self.blocks[self._remembered]
            self._node = cache.remember(self.request.stack.digest, self._node, tokens, block)
            self._remembered += 1

    def retreat(self, cache: Blocks) -> None:
        """Give up its blocks; what was said stays, and is read again when there is room."""
        cache.release(self.blocks)
        self.blocks, self.computed, self._node, self._remembered = [], 0, 0, 0

    # -- drawing

    @property
    def plain(self) -> bool:
        """Whether its next token is the argmax of the logits."""
        asked = self.request
        return self._drawer.plain and asked.constraint is None and asked.logprobs is None

    def take(self, token: int) -> Reason | None:
        """A token that is the argmax, where `plain`. Why the answer ends, if it does."""
        return self._said(Token(self._drawer.took(token)))

    def draw(self, logits_V: Tensor) -> Reason | None:
        """Draw the next token from its logits. Why the answer ends, if it does."""
        asked = self.request
        allowed_V = logits_V
        if asked.constraint is not None:
            allowed_V = _masked(logits_V, asked.constraint.fill, asked.stop_ids)
        token = self._drawer.next(allowed_V)
        if asked.constraint is not None and token not in asked.stop_ids:
            asked.constraint.push(token)
        return self._said(_with_logprobs(token, logits_V, asked.logprobs))

    def _said(self, token: Token) -> Reason | None:
        asked = self.request
        if token.id in asked.stop_ids:
            return "stop"
        self.tokens.append(token.id)
        self._tell(token)
        if asked.constraint is not None and asked.constraint.ended:
            return "stop"
        return "length" if self.new_tokens >= asked.max_new_tokens else None

    def end(self, reason: Reason, error: LaminaError | None = None) -> None:
        """Tell the listener that this was all."""
        prompt = len(self.request.prompt)
        self._tell(Finished(reason, prompt, self.cached, self.new_tokens, error))

    def _tell(self, event: Event) -> None:
        try:
            self.listener(event)
        except Exception:  # a listener's fault must not end the others' answers
            _LOG.exception("a listener raised; its answer is given up")
            self.cancelled.set()


def _masked(
    logits_V: Tensor, fill: Callable[[np.ndarray], None], stop_ids: Sequence[int]
) -> Tensor:
    """Minus infinity where a token may not come. Where none may, the answer can only stop."""
    words = np.zeros(-(-len(logits_V) // 32), dtype=np.int32)
    fill(words)
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[: len(logits_V)]
    if not bits.any():
        bits[list(stop_ids)] = 1
    return logits_V.masked_fill(torch.from_numpy(bits == 0).to(logits_V.device), -torch.inf)


def _with_logprobs(token: int, logits_V: Tensor, count: int | None) -> Token:
    if count is None:
        return Token(token)
    logprobs_V = logits_V.log_softmax(dim=-1)
    best = logprobs_V.topk(count) if count else None
    top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)) if best else ()
    return Token(token, float(logprobs_V[token]), top)
