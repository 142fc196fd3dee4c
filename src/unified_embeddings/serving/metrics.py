"""What the service counts, in Prometheus's text format.

What lives here: the metrics of one application, in a registry of its own, so that several
applications of one process do not share numbers. The queue and the cache are read when asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from unified_embeddings.serving.service import EmbeddingService

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "unified_embeddings_"
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Seconds: from a cached query to a long text on a CPU."""


class Metrics:
    """The metrics of one application.

    Args:
        service: Whose queue and cache are read.
    """

    def __init__(self, service: EmbeddingService) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            f"{_PREFIX}requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            f"{_PREFIX}request_seconds",
            "From the first byte of a request to its answer.",
            ("route",),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._in_flight = Gauge(
            f"{_PREFIX}requests_in_flight", "Requests being answered.", registry=self._registry
        )
        self._registry.register(_ServiceCollector(service))

    @contextlib.contextmanager
    def in_flight(self) -> Iterator[None]:
        """Count a request as being answered while the context is open."""
        self._in_flight.inc()
        try:
            yield
        finally:
            self._in_flight.dec()

    def note_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def write(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._registry)


class _ServiceCollector(Collector):
    """Reads the queue and the embedder's counters whenever the metrics are asked for."""

    def __init__(self, service: EmbeddingService) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        service = self._service
        batcher = service.batcher
        gauges = {
            "ready": ("Whether requests are answered.", float(service.is_ready)),
            "waiting_tokens": ("Tokens that wait for a pass.", float(batcher.waiting_tokens)),
            "waiting_requests": ("Requests that wait for a pass.", float(batcher.waiting_requests)),
        }
        counters = {"passes": ("Passes handed to the engine.", batcher.passes)}
        if service.is_ready:
            stats = service.embedder.stats()
            gauges["cache_bytes"] = ("Bytes held by the cache.", float(stats.cache.bytes))
            counters |= {
                "texts": ("Texts asked for.", stats.texts),
                "tokens": ("Tokens run through the model.", stats.tokens),
                "truncated_texts": ("Texts cut at the model's length.", stats.truncated),
                "cache_hits": ("Vectors found in the cache.", stats.cache.hits),
                "cache_misses": ("Vectors that had to be computed.", stats.cache.misses),
            }
        for name, (meaning, value) in gauges.items():
            yield GaugeMetricFamily(_PREFIX + name, meaning, value=value)
        for name, (meaning, value) in counters.items():
            yield CounterMetricFamily(_PREFIX + name, meaning, value=value)
