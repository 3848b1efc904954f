"""`lamina chat`: a conversation with a stack, with a KV cache that outlives the turn."""

from collections.abc import Iterator

from lamina.bases.sample import Stream
from lamina.bases.sampling import Sampling
from lamina.core.errors import UsageError
from lamina.data.example import Message
from lamina.flows.trust import Trust, check_stack
from lamina.stack.compile import Compiled, base_format, compile_stack, device_at_hand
from lamina.stack.resolve import resolve
from lamina.store.layout import Store
from lamina.tokens.stream import StreamDecoder


class Conversation:
    """History plus the stack that answers next."""

    def __init__(
        self,
        store: Store,
        stack: str,
        *,
        system: str | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        max_tokens: int = 512,
        trust: Trust | None = None,
    ) -> None:
        self._store = store
        self._trust = trust
        self._sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
        self._max_tokens = max_tokens
        self._system = (Message(role="system", content=system),) if system else ()
        self.history: tuple[Message, ...] = self._system
        self.switch(stack)

    def switch(self, stack: str) -> None:
        """Go on with another stack; the history stays, the cache does not.

        Raises TrustError for one that the policy refuses to serve.
        """
        found = resolve(self._store, stack)
        if self._trust is not None:
            check_stack(self._store, self._trust, found)
        base_format(self._store, found)  # a stack that draws is refused before it is loaded
        self._compiled: Compiled = compile_stack(self._store, found, device=device_at_hand())
        self._stream = Stream(self._compiled.model)

    @property
    def digest(self) -> str:
        """The answering stack's digest."""
        return self._compiled.stack.digest

    def reset(self) -> None:
        """Forget the conversation, keep the system message."""
        self.history = self._system

    def ask(self, text: str) -> Iterator[str]:
        """Stream the answer in pieces of text; afterwards both turns are in the history.

        When the caller stops early, what was said so far is the turn. Raises UsageError, before
        anything is said, for a conversation that the base cannot read.
        """
        turns = (*self.history, Message(role="user", content=text))
        format_ = self._compiled.format
        prompt = format_.prompt_ids(turns, ())  # raises before anything is said
        room = self._room(len(prompt))
        decoder = StreamDecoder(format_.tokenizer, format_.stop_strings)
        said: list[str] = []
        try:
            for token in self._stream.tokens(
                prompt,
                max_new_tokens=min(self._max_tokens, room),
                stop_ids=format_.stop_ids,
                sampling=self._sampling,
            ):
                piece, ended = decoder.push(token)
                if piece:
                    said.append(piece)
                    yield piece
                if ended:
                    break
            rest = decoder.flush()
            if rest:
                said.append(rest)
                yield rest
        finally:
            self.history = (*turns, Message(role="assistant", content="".join(said)))

    def _room(self, tokens: int) -> int:
        """Tokens left for an answer. Raises UsageError when the base cannot read that many."""
        context = getattr(self._compiled.model.config, "max_position_embeddings", None)
        if not isinstance(context, int):
            return self._max_tokens
        if tokens >= context:
            raise UsageError(
                f"the conversation has {tokens} tokens, the base reads {context}",
                hint="say less at once, or forget what was said: /reset",
            )
        return context - tokens
