"""Metrics pulled from the other rooms' counters, whenever somebody asks for them.

What lives here: turning `stats()` and the like into Prometheus's metrics. What does not: their
names (`families`), the registry that asks (`registry`).

A source that cannot be read, such as a Qdrant that is down, costs its own metrics and no others.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from unified_embeddings.embedders.footprint import measure_models
from unified_embeddings.embedders.lazy import LocalModel
from unified_embeddings.embedders.values import EmbedderStats
from unified_embeddings.engines.gpu import read_gpus
from unified_embeddings.errors import UnifiedEmbeddingsError
from unified_embeddings.monitoring import families as f
from unified_embeddings.monitoring.drift import DriftMonitor
from unified_embeddings.monitoring.quality import read_quality
from unified_embeddings.stores.measuring import CollectionSize, measure_collection
from unified_embeddings.stores.opening import Client
from unified_embeddings.system.durations import BOUNDS, Durations
from unified_embeddings.system.memory import ModelMemory, process_bytes

_LOG = logging.getLogger(__name__)
_MEMORY_AGE = 5.0
"""Seconds for which a measurement of memory holds; one takes milliseconds."""

Sample = tuple[tuple[str, ...], float]
"""Values of the labels, and the metric's value."""


class ModeStats(Protocol):
    """What a retriever tells of one mode: `retrievers.timing.SearchStats`."""

    @property
    def mode(self) -> str:
        """Return the mode."""
        ...

    @property
    def durations(self) -> Durations:
        """Return how long the searches took."""
        ...

    @property
    def failed(self) -> int:
        """Return how many raised an error."""
        ...


class CountingRetriever(Protocol):
    """A retriever with counters: UnifiedHybridRetriever or UnifiedMultiModalRetriever."""

    def stats(self) -> Sequence[ModeStats]:
        """Return the counters of each mode."""
        ...


class EmbedderCollector(Collector):
    """An embedder's counters.

    Args:
        stats: Returns them; None while there is no embedder yet.
    """

    def __init__(self, stats: Callable[[], EmbedderStats | None]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        stats = self._stats()
        if stats is None:
            return
        yield plain(f.TEXTS, stats.texts)
        yield plain(f.TOKENISED, stats.tokenised)
        yield plain(f.TRUNCATED, stats.truncated)
        yield plain(f.TOKENS, stats.tokens)
        yield plain(f.BATCHES, stats.forwards)
        if stats.capacity:
            yield plain(f.CAPACITY, stats.capacity)
        yield histogram(
            f.FORWARD_SECONDS,
            [
                ((times.model, times.engine, times.lengths), times.durations)
                for times in stats.passes
            ],
        )
        cache = stats.cache
        yield plain(f.CACHE_HITS, cache.hits)
        yield plain(f.CACHE_MISSES, cache.misses)
        yield plain(f.CACHE_EVICTIONS, cache.evictions)
        yield plain(f.CACHE_BYTES, cache.bytes)
        yield plain(f.CACHE_ENTRIES, cache.entries)


class MachineCollector(Collector):
    """The memory of loaded models and of this process, and the GPUs.

    Args:
        models: Returns the models in use.
        clock: Tells the seconds; for tests.
    """

    def __init__(
        self,
        models: Callable[[], Sequence[LocalModel]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._models = models
        self._clock = clock
        self._lock = threading.Lock()
        self._measured: tuple[Metric, ...] = ()
        self._measured_at: float | None = None

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they were at most 5 seconds ago."""
        with self._lock:
            now = self._clock()
            if self._measured_at is None or now - self._measured_at > _MEMORY_AGE:
                memories = measure_models(self._models())
                self._measured = tuple(_machine_metrics(memories))
                # While nothing is loaded it takes no time, and a model is told of at once.
                self._measured_at = now if memories else None
            measured = self._measured
        yield from measured


class RetrieverCollector(Collector):
    """The searches of some retrievers, added up by mode."""

    def __init__(self, retrievers: Sequence[CountingRetriever]) -> None:
        self._retrievers = retrievers

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        durations: dict[str, Durations] = {}
        failed: dict[str, int] = {}
        for stats in itertools.chain.from_iterable(one.stats() for one in self._retrievers):
            counted = durations.get(stats.mode)
            durations[stats.mode] = (
                stats.durations if counted is None else counted + stats.durations
            )
            failed[stats.mode] = failed.get(stats.mode, 0) + stats.failed
        yield histogram(f.SEARCH_SECONDS, [((mode,), times) for mode, times in durations.items()])
        yield labelled(f.SEARCHES_FAILED, [((mode,), count) for mode, count in failed.items()])


class SourceCollector(Collector):
    """Sources that may fail: each tells its metrics, or that it cannot be read.

    Args:
        sources: Name → what returns its metrics, or raises an error of ours.
    """

    def __init__(self, sources: dict[str, Callable[[], Iterable[Metric]]]) -> None:
        self._sources = sources
        self._failing: dict[str, str] = {}

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the sources that can be read, and which ones can."""
        up: list[Sample] = []
        families: dict[str, Metric] = {}
        for name, read in self._sources.items():
            try:
                metrics = list(read())
            except UnifiedEmbeddingsError as error:
                self._note_failure(name, str(error))
                up.append(((name,), 0))
                continue
            self._failing.pop(name, None)
            up.append(((name,), 1))
            # Two collections give the same metrics, which Prometheus wants in one place.
            for metric in metrics:
                families.setdefault(metric.name, metric)
                if families[metric.name] is not metric:
                    families[metric.name].samples.extend(metric.samples)
        yield from families.values()
        if up:
            yield labelled(f.SOURCE_UP, up)

    def _note_failure(self, name: str, problem: str) -> None:
        """Log a failure once, not at every scrape."""
        if self._failing.get(name) != problem:
            self._failing[name] = problem
            _LOG.warning("no metrics of %s: %s", name, problem)


def _machine_metrics(memories: Sequence[ModelMemory]) -> Iterator[Metric]:
    """Yield the metrics of the loaded models, this process and the GPUs."""
    weights: list[Sample] = []
    resident: list[Sample] = []
    for memory in memories:
        labels = (memory.model, memory.runs_on)
        weights.append((labels, memory.weights))
        if memory.resident is not None:
            resident.append((labels, memory.resident))
    yield labelled(f.MODEL_WEIGHTS, weights)
    yield labelled(f.MODEL_RESIDENT, resident)
    yield plain(f.PROCESS_RESIDENT, process_bytes())
    readings = read_gpus()
    if readings:
        yield labelled(f.GPU_USED, [((str(gpu.index),), gpu.used) for gpu in readings])
        yield labelled(f.GPU_TOTAL, [((str(gpu.index),), gpu.total) for gpu in readings])
    utilisations: list[Sample] = []
    for gpu in readings:
        if gpu.utilisation is not None:
            utilisations.append(((str(gpu.index),), gpu.utilisation))
    if utilisations:
        yield labelled(f.GPU_UTILISATION, utilisations)


def collection_metrics(client: Client, collection: str) -> Iterator[Metric]:
    """Yield a collection's metrics.

    Raises:
        StoreError: If it does not exist, or Qdrant fails.
    """
    size: CollectionSize = measure_collection(client, collection)
    yield labelled(f.POINTS, [((collection,), size.points)])
    yield labelled(f.INDEXED, [((collection,), size.indexed_vectors)])
    yield labelled(f.SEGMENTS, [((collection,), size.segments)])
    if size.bytes is not None:
        yield labelled(f.COLLECTION_BYTES, [((collection,), size.bytes)])


def quality_metrics(path: Path) -> Iterator[Metric]:
    """Yield the metrics of the last evaluation.

    Raises:
        InputError: If its file cannot be read.
    """
    quality = read_quality(path)
    samples: list[Sample] = []
    for system, measures in quality.systems.items():
        for measure, value in measures.items():
            samples.append(((quality.data, system, measure), value))
    yield labelled(f.QUALITY, samples)
    yield plain(f.QUALITY_TIME, quality.created)


def drift_metrics(monitor: DriftMonitor) -> Iterator[Metric]:
    """Yield a drift monitor's numbers, those that it has."""
    report = monitor.report()
    yield plain(f.DRIFT_QUERIES, report.queries)
    numbers = (
        (f.DRIFT_COSINE, report.cosine),
        (f.DRIFT_REFERENCE, report.reference_cosine),
        (f.DRIFT_WEAK, report.weak_share),
        (f.DRIFT_THRESHOLD, report.threshold),
    )
    for family, number in numbers:
        if number is not None:
            yield plain(family, number)


# --- metrics of each kind -----------------------------------------------------------------------


def plain(family: f.Family, value: float) -> Metric:
    """Return a metric without labels."""
    return labelled(family, [((), value)])


def labelled(family: f.Family, samples: Iterable[Sample]) -> Metric:
    """Return a counter or a gauge.

    Args:
        family: Which one.
        samples: Values of the labels, and the metric's value.
    """
    name = f.PREFIX + family.name
    metric: CounterMetricFamily | GaugeMetricFamily
    if family.kind == "counter":
        metric = CounterMetricFamily(name, family.meaning, labels=family.labels)
    else:
        metric = GaugeMetricFamily(name, family.meaning, labels=family.labels)
    for labels, value in samples:
        metric.add_metric(labels, float(value))
    return metric


def histogram(
    family: f.Family, samples: Iterable[tuple[tuple[str, ...], Durations]]
) -> HistogramMetricFamily:
    """Return a histogram of seconds.

    Args:
        family: Which one.
        samples: Values of the labels, and the durations.
    """
    metric = HistogramMetricFamily(f.PREFIX + family.name, family.meaning, labels=family.labels)
    bounds = [*map(str, BOUNDS), "+Inf"]
    for labels, durations in samples:
        totals = itertools.accumulate(durations.counts)
        buckets = [(bound, float(total)) for bound, total in zip(bounds, totals, strict=True)]
        metric.add_metric(labels, buckets, durations.seconds)
    return metric
