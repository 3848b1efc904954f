"""How much a key may ask: token buckets that refill over a minute."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from lamina.web.keys import Key

_MINUTE = 60.0
Clock = Callable[[], float]


class Bucket:
    """Holds at most `most`, and gets that much back in a minute. May be overdrawn."""

    def __init__(self, most: int, clock: Clock) -> None:
        self.most = most
        self._clock, self._level, self._at = clock, float(most), clock()

    @property
    def level(self) -> float:
        """What is in it now; below zero when overdrawn."""
        now = self._clock()
        refilled = self._level + (now - self._at) * self.most / _MINUTE
        self._level, self._at = min(refilled, float(self.most)), now
        return self._level

    def take(self, count: float) -> None:
        """Take `count` out."""
        self._level = self.level - count

    def seconds_until(self, count: float) -> float:
        """How long until `count` is in it."""
        return max(count - self.level, 0.0) * _MINUTE / self.most


@dataclass(frozen=True)
class Standing:
    """What a key has left, as headers say it."""

    headers: dict[str, str]
    refused: str | None = None
    """Why nothing more may be asked now."""
    retry_after: int = 0
    """Seconds until it is worth asking again."""


class Limits:
    """The buckets of all keys, by name; a key with other limits gets new ones. Thread-safe."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], Bucket] = {}
        self._lock = threading.Lock()

    def ask(self, key: Key) -> Standing:
        """Count a request, unless the key has no more of them or of tokens for now."""
        with self._lock:
            requests = self._bucket(key.name, "requests", key.requests_per_minute)
            tokens = self._bucket(key.name, "tokens", key.tokens_per_minute)
            for what, bucket in (("requests", requests), ("tokens", tokens)):
                if bucket is not None and bucket.level < 1:
                    return Standing(
                        _headers(requests, tokens),
                        f"this key may have {bucket.most} {what} a minute",
                        max(math.ceil(bucket.seconds_until(1)), 1),
                    )
            if requests is not None:
                requests.take(1)
            return Standing(_headers(requests, tokens))

    def spend(self, key: Key, tokens: int) -> None:
        """Count tokens that were read or said."""
        with self._lock:
            bucket = self._bucket(key.name, "tokens", key.tokens_per_minute)
            if bucket is not None:
                bucket.take(tokens)

    def _bucket(self, name: str, what: str, most: int | None) -> Bucket | None:
        if most is None:
            return None
        bucket = self._buckets.get((name, what))
        if bucket is None or bucket.most != most:
            bucket = self._buckets[name, what] = Bucket(most, self._clock)
        return bucket


def _headers(requests: Bucket | None, tokens: Bucket | None) -> dict[str, str]:
    found = {}
    for what, bucket in (("requests", requests), ("tokens", tokens)):
        if bucket is not None:
            found[f"x-ratelimit-limit-{what}"] = str(bucket.most)
            found[f"x-ratelimit-remaining-{what}"] = str(max(math.floor(bucket.level), 0))
            found[f"x-ratelimit-reset-{what}"] = f"{bucket.seconds_until(bucket.most):.1f}s"
    return found
