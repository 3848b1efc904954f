"""One seed, many independent streams: each use derives its own from the run's seed and a label."""

import hashlib


def derive(seed: int, *labels: str | int) -> int:
    """A 63-bit seed for one use: a hash of the run's seed and what it is for."""
    text = "/".join([str(seed), *map(str, labels)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
