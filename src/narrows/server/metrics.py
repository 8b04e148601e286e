"""Figures for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from narrows.errors import NarrowsError
from narrows.server.backend import Backend
from narrows.server.visit import Visit

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_TOKEN_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class Metrics:
    """The server's figures, in a registry of their own."""

    def __init__(self, backends: Sequence[Backend]) -> None:
        self._registry = registry = CollectorRegistry()

        def counter(name: str, told: str, *labels: str) -> Counter:
            return Counter(f"narrows_{name}", told, labels, registry=registry)

        def seconds(name: str, told: str, label: str, bounds: Sequence[float] = _SECONDS) -> Histogram:
            return Histogram(f"narrows_{name}_seconds", told, [label], buckets=bounds, registry=registry)

        self._requests = counter("requests", "Requests answered", "endpoint", "status")
        self._seconds = seconds("request", "From a request's first byte to its answer's last", "endpoint")
        self._tokens = counter("tokens", "Tokens charged, by kind", "model", "kind")
        self._outcomes = counter("outcomes", "Generations, by their end", "model", "outcome")
        self._first = seconds("first_token", "Until a generation's first token", "model")
        self._each = seconds("token", "Between two tokens, on average over a generation", "model", _TOKEN_SECONDS)
        self.open = Gauge("narrows_requests_open", "Generations under way or waiting", registry=registry)
        registry.register(_Engines(backends))

    def count(self, visit: Visit, endpoint: str) -> None:
        """A request that has ended; `endpoint` is its route, of which there are few, not its path."""
        self._requests.labels(endpoint, visit.status).inc()
        self._seconds.labels(endpoint).observe(time.monotonic() - visit.began)
        if visit.model is None or visit.outcome is None:
            return
        self._outcomes.labels(visit.model, visit.outcome).inc()
        if visit.usage is not None:
            usage = vars(visit.usage)
            for kind, tokens in usage.items():
                self._tokens.labels(visit.model, kind).inc(tokens)
        if visit.first_token is not None:
            self._first.labels(visit.model).observe(visit.first_token - visit.began)
            if visit.last_token is not None and visit.usage is not None and visit.usage.output > 1:
                each = (visit.last_token - visit.first_token) / (visit.usage.output - 1)
                self._each.labels(visit.model).observe(each)

    def text(self) -> bytes:
        """All figures in Prometheus' text format. May take as long as a step of the engine."""
        return generate_latest(self._registry)


class _Engines(Collector):
    """What the models' engines count, read when somebody asks."""

    def __init__(self, backends: Sequence[Backend]) -> None:
        self._backends = backends

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        families: dict[str, GaugeMetricFamily] = {}
        for backend in self._backends:
            try:
                stats = backend.stats()
            except NarrowsError:  # it has ended, which /ready says; the other figures are wanted all the more
                continue
            for name, value in stats.items():
                if name not in families:
                    told = f"The engine's figure {name}"
                    families[name] = GaugeMetricFamily(f"narrows_engine_{name}", told, labels=["model"])
                families[name].add_metric([backend.info.name], value)
        return families.values()
