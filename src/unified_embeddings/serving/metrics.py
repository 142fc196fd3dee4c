"""What the service counts, in Prometheus's text format.

What lives here: the metrics of one application, in a registry of its own, so that several
applications of one process do not share numbers. What does not: those of the embedder and the
machine (`monitoring.collectors`). The queue and the embedder are read when asked. Where several
processes serve behind one port, whichever is asked tells the metrics of all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from unified_embeddings.embedders.lazy import LocalModel
from unified_embeddings.embedders.values import EmbedderStats
from unified_embeddings.monitoring import families
from unified_embeddings.monitoring.collectors import (
    EmbedderCollector,
    MachineCollector,
    RetrieverCollector,
    plain,
)
from unified_embeddings.serving.searching import Search
from unified_embeddings.serving.service import EmbeddingService

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
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
            families.PREFIX + families.REQUESTS.name,
            families.REQUESTS.meaning,
            families.REQUESTS.labels,
            registry=self._registry,
        )
        self._seconds = Histogram(
            families.PREFIX + families.REQUEST_SECONDS.name,
            families.REQUEST_SECONDS.meaning,
            families.REQUEST_SECONDS.labels,
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._in_flight = Gauge(
            families.PREFIX + families.IN_FLIGHT.name,
            families.IN_FLIGHT.meaning,
            registry=self._registry,
        )
        self._registry.register(_ServiceCollector(service))
        self._registry.register(EmbedderCollector(partial(_stats_of, service)))
        self._registry.register(MachineCollector(partial(_models_of, service)))
        self._searched: list[Search] = []
        self._registry.register(RetrieverCollector(self._searched))
        self._own_name = ""
        self._ask_workers: Callable[[], Awaitable[dict[str, str]]] | None = None

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

    def tell_searches(self, search: Search) -> None:
        """Tell what is searched, from now on."""
        self._searched[:] = [search]

    def join_workers(
        self, own_name: str, ask_workers: Callable[[], Awaitable[dict[str, str]]]
    ) -> None:
        """Let `write_all` tell the metrics of several processes.

        Args:
            own_name: Of this process among them.
            ask_workers: Returns each process's name → what its `write` gave lately.
        """
        self._own_name, self._ask_workers = own_name, ask_workers

    def write(self) -> bytes:
        """Return this process's metrics in Prometheus's text format."""
        return generate_latest(self._registry)

    async def write_all(self) -> bytes:
        """Return the metrics of all processes behind the port, each labelled with its worker."""
        if self._ask_workers is None:
            return self.write()
        texts = await self._ask_workers()
        texts[self._own_name] = self.write().decode()
        return merge_metrics(texts)


class _ServiceCollector(Collector):
    """Reads the queue whenever the metrics are asked for."""

    def __init__(self, service: EmbeddingService) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        batcher = self._service.batcher
        yield plain(families.READY, self._service.is_ready)
        yield plain(families.WAITING_TOKENS, batcher.waiting_tokens)
        yield plain(families.WAITING_REQUESTS, batcher.waiting_requests)
        yield plain(families.PASSES, batcher.passes)


def _stats_of(service: EmbeddingService) -> EmbedderStats | None:
    """Return the embedder's counters; None while it is being loaded."""
    return service.embedder.stats() if service.is_ready else None


def _models_of(service: EmbeddingService) -> tuple[LocalModel, ...]:
    """Return the models in memory; none while they are being loaded."""
    return service.config.models if service.is_ready else ()


def merge_metrics(texts: Mapping[str, str]) -> bytes:
    r"""Put the metrics of several processes together, each sample labelled with its worker.

    Args:
        texts: A worker's name → its metrics in Prometheus's text format.

    Example:
        >>> text = "# HELP texts_total Asked for.\n# TYPE texts_total counter\ntexts_total 3.0\n"
        >>> print(merge_metrics({"0": text, "1": text}).decode())
        # HELP texts_total Asked for.
        # TYPE texts_total counter
        texts_total{worker="0"} 3.0
        texts_total{worker="1"} 3.0
    """
    families: dict[str, Metric] = {}
    for worker, text in sorted(texts.items()):
        for family in text_string_to_metric_families(text):
            merged = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            for sample in family.samples:
                merged.add_sample(
                    sample.name, {**sample.labels, "worker": worker}, sample.value, sample.timestamp
                )
    registry = CollectorRegistry()
    registry.register(_Families(tuple(families.values())))
    return generate_latest(registry)


class _Families(Collector):
    """Metrics that were read from texts."""

    def __init__(self, families: tuple[Metric, ...]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families
