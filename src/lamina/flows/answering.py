"""Many greedy answers of one compiled stack, through the engine that serves where it can be had.

So exams ask what servers answer with, at its speed. Its decoder packs the weights once more; where
memory is short for that, or the native kernels do not suit the model, transformers' own modules
answer.
"""

import queue
from collections.abc import Callable, Sequence
from dataclasses import replace

from lamina.bases.sample import BATCH_ROWS, generate
from lamina.core.errors import LaminaError
from lamina.core.machine import free
from lamina.serve import native
from lamina.serve.engine import Engine, Limits
from lamina.serve.open import context_of
from lamina.serve.request import Event, Finished, Request, Token
from lamina.stack.compile import Compiled

SPARE = 3
"""Times the weights' bytes that have to be free for a second copy of them."""


def answers(
    compiled: Compiled,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    progress: Callable[[int], None],
) -> list[list[int]]:
    """Token ids without the stop token, in the prompts' order. The model stays as it is."""
    longest = max(map(len, prompts), default=0) + max_new_tokens
    fits = longest <= context_of(compiled)
    if not prompts or not fits or native.why_not(compiled.model) or _tight(compiled):
        return generate(
            compiled.model,
            prompts,
            max_new_tokens=max_new_tokens,
            stop_ids=compiled.format.stop_ids,
            pad_id=compiled.pad_id,
            progress=progress,
        )
    limits = Limits(cache_tokens=min(BATCH_ROWS, len(prompts)) * (longest + 32), rows=BATCH_ROWS)
    engine = Engine(
        compiled.stack.base.digest,
        native.NativeDecoder(compiled.model, keep=True),
        lambda layer: {},
        context=longest,
        limits=replace(limits, waiting=len(prompts)),
    )
    try:
        return _asked(engine, compiled, prompts, max_new_tokens, progress)
    finally:
        engine.drain(0)


def _tight(compiled: Compiled) -> bool:
    """Whether a second copy of the weights would take much of what is free."""
    room = free()
    size = sum(p.numel() * p.element_size() for p in compiled.model.parameters())
    return room is not None and SPARE * size > room


def _asked(
    engine: Engine,
    compiled: Compiled,
    prompts: Sequence[Sequence[int]],
    new: int,
    progress: Callable[[int], None],
) -> list[list[int]]:
    told: list[list[int]] = [[] for _ in prompts]
    ended: queue.Queue[Finished] = queue.Queue()

    def listener(row: int) -> Callable[[Event], None]:
        def hear(event: Event) -> None:
            if isinstance(event, Token):
                told[row].append(event.id)
            else:
                ended.put(event)

        return hear

    folded = replace(compiled.stack, layers=())  # they are in the weights already
    stop_ids = tuple(compiled.format.stop_ids)
    for row, prompt in enumerate(prompts):
        engine.submit(Request(folded, tuple(prompt), new, stop_ids), listener(row))
    for done in range(1, len(prompts) + 1):
        event = ended.get()
        if event.reason == "error":
            raise event.error or LaminaError("an answer failed")
        progress(done)
    return told
