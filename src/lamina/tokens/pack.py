"""Batches of rows of similar length, so that hardly any arithmetic is spent on padding."""

import random
from collections.abc import Sequence

from lamina.core.seeds import derive

_JITTER = 0.03
"""Rows within about this share of each other's length swap places between epochs."""
_SHORTEST = 0.85
"""A row shorter than this share of the batch's longest starts a new batch."""


def plan_batches(
    lengths: Sequence[int], batch_tokens: int, seed: int, epoch: int
) -> list[list[int]]:
    """Group row indices into batches: every row exactly once, the same for the same arguments.

    A batch's padded size, rows x longest, is at most `batch_tokens`; a row longer than that is a
    batch of its own. Lengths are jittered before sorting, so epochs group rows differently, and the
    batches come in random order. Raises ValueError when `batch_tokens` is below 1.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be at least 1, not {batch_tokens}")
    draw = random.Random(derive(seed, "batches", epoch))
    keys = [(length * (1 + draw.uniform(0, _JITTER)), draw.random()) for length in lengths]
    batches: list[list[int]] = []
    longest = 0
    for row in sorted(range(len(lengths)), key=keys.__getitem__, reverse=True):
        wider = max(longest, lengths[row])
        fits = batches and (len(batches[-1]) + 1) * wider <= batch_tokens
        if fits and lengths[row] >= _SHORTEST * longest:
            batches[-1].append(row)
            longest = wider
        else:
            batches.append([row])
            longest = lengths[row]
    draw.shuffle(batches)
    return batches


def padding_share(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Share of the padded tokens of these batches that is padding, 0 to 1."""
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    return 1 - sum(lengths[row] for batch in batches for row in batch) / padded if padded else 0.0
