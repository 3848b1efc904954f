"""Prometheus metrics: what was asked, how fast it was answered, what the engines hold."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from lamina.serve.request import Stats
from lamina.web.schema import Usage

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_EACH = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2)
_HELP = {
    "running": "Requests in the batch",
    "waiting": "Requests not admitted yet",
    "tokens_in": "Prompt tokens read since the start, cached ones left out",
    "tokens_cached": "Prompt tokens that the prefix cache spared since the start",
    "tokens_out": "Tokens told since the start",
    "steps": "Passes of the base since the start",
    "blocks": "Blocks of the KV cache",
    "blocks_free": "Blocks that nothing reads and the prefix cache does not keep",
    "layers_loaded": "Layers whose factors are in memory",
    "layer_bytes": "Bytes of those",
    "layers_evicted": "Layers dropped from memory since the start",
    "replicas": "Processes that answer; the others are sums over them",
}


class Metrics:
    """One server's numbers, in a registry of their own."""

    def __init__(self, stats: Callable[[], Mapping[str, Stats]]) -> None:
        self._registry = CollectorRegistry()
        where = self._registry
        self._requests = Counter(
            "lamina_requests", "HTTP requests", ["route", "status"], registry=where
        )
        self._prompt = Counter("lamina_prompt_tokens", "Tokens of prompts", registry=where)
        self._cached = Counter(
            "lamina_cached_tokens", "Tokens of prompts that a cache spared", registry=where
        )
        self._said = Counter("lamina_completion_tokens", "Tokens of answers", registry=where)
        self._seconds = Histogram(
            "lamina_request_seconds", "From a request's arrival to its end", registry=where
        )
        self._first = Histogram(
            "lamina_first_token_seconds",
            "From a request's arrival at the engine to its first token",
            buckets=_FIRST,
            registry=where,
        )
        self._each = Histogram(
            "lamina_token_seconds", "Between an answer's tokens", buckets=_EACH, registry=where
        )
        self._registry.register(_Engines(stats))

    def requested(self, route: str, status: int, seconds: float) -> None:
        """A request ended."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.observe(seconds)

    def answered(self, usage: Usage, first: float | None, gaps: Sequence[float]) -> None:
        """Answers ended; `first` and `gaps` in seconds."""
        self._prompt.inc(usage.prompt_tokens)
        self._cached.inc(usage.prompt_tokens_details.cached_tokens)
        self._said.inc(usage.completion_tokens)
        if first is not None:
            self._first.observe(first)
        for gap in gaps:
            self._each.observe(gap)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)


class _Engines(Collector):
    """The engines' own numbers, read when somebody looks."""

    def __init__(self, stats: Callable[[], Mapping[str, Stats]]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[GaugeMetricFamily]:
        found = self._stats()
        for item in fields(Stats):
            text = _HELP.get(item.name, item.name)
            family = GaugeMetricFamily(f"lamina_engine_{item.name}", text, labels=["base"])
            for base, stats in found.items():
                family.add_metric([base], getattr(stats, item.name))
            yield family
