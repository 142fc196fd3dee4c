"""Metrics of an application that uses the library without the service.

What lives here: a registry of our own, its text, and a port that tells it. What does not: the
values (`collectors`), the service's metrics (`serving.metrics`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from unified_embeddings.errors import InputError, MissingExtraError

try:
    from prometheus_client import CollectorRegistry, generate_latest, start_http_server
    from prometheus_client.registry import Collector
except ImportError as error:
    raise MissingExtraError("prometheus-client, for metrics,", extra="metrics") from error

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.lazy import LocalModel
from unified_embeddings.monitoring.collectors import (
    CountingRetriever,
    EmbedderCollector,
    MachineCollector,
    RetrieverCollector,
    SourceCollector,
    collection_metrics,
    drift_metrics,
    quality_metrics,
)
from unified_embeddings.monitoring.drift import DriftMonitor, centre_of
from unified_embeddings.stores.measuring import sample_vectors
from unified_embeddings.stores.opening import Client
from unified_embeddings.types import FloatArray

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    from prometheus_client.core import Metric

Item = TypeVar("Item")
_SAMPLE = 1000
"""Vectors that a collection's centre is estimated from."""


@runtime_checkable
class Pipeline(Protocol):
    """What has an embedder and models: UnifiedEmbeddingConfig."""

    @property
    def embedder(self) -> TextEmbedder:
        """Return the embedder of texts."""
        ...

    @property
    def models(self) -> tuple[LocalModel, ...]:
        """Return the models in use."""
        ...


class Store(Protocol):
    """A LlamaIndex QdrantVectorStore, such as `UnifiedEmbeddingConfig.vector_store` opens."""

    collection_name: str
    dense_vector_name: str

    @property
    def client(self) -> Client:
        """Return its sync client."""
        ...


class SeenSearch(Protocol):
    """What is read of a search: `retrievers.timing.Search`."""

    vector: FloatArray | None
    similarity: float | None


class WatchedRetriever(CountingRetriever, Protocol):
    """A retriever whose searches can be watched: UnifiedHybridRetriever."""

    @property
    def searches(self) -> SearchWatch:
        """Return the counters, which take watchers."""
        ...


class SearchWatch(Protocol):
    """What takes watchers: `retrievers.timing.SearchCounters`."""

    def watch(
        self, watcher: Callable[[SeenSearch], contextlib.AbstractContextManager[None]]
    ) -> Callable[[], None]:
        """Let something see each search; return what ends that."""
        ...


class Registry:
    """Metrics of what was added to it, and of nothing else in the process.

    Example:
        >>> from unified_embeddings.embedders.fake import FakeEmbedder
        >>> from unified_embeddings.monitoring.registry import watch
        >>> embedder = FakeEmbedder()
        >>> registry = watch(embedder)
        >>> _ = embedder.encode_documents(["Foxes jump.", "Dogs sleep."])
        >>> print(*[line for line in registry.text().splitlines() if "_texts_total" in line][2:3])
        unified_embeddings_texts_total 2.0
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

    def add(self, collector: Collector) -> None:
        """Ask a collector too, from now on."""
        self._registry.register(collector)

    def text(self) -> str:
        """Return all metrics as they are now, in Prometheus's text format."""
        return generate_latest(self._registry).decode()

    def serve(self, port: int, host: str = "127.0.0.1") -> MetricsServer:
        """Answer GET /metrics in a thread until the result is closed or the process ends.

        Args:
            port: Where to listen; 0 takes a free one.
            host: "0.0.0.0" lets other machines ask: there is no key.

        Raises:
            InputError: If the port cannot be listened on.
        """
        try:
            server, thread = start_http_server(port, addr=host, registry=self._registry)
        except (OSError, OverflowError) as error:
            raise InputError(
                f"cannot listen on {host}:{port} for metrics: {error}; choose another port"
            ) from error
        return MetricsServer(server, thread)


class MetricsServer:
    """A port that tells the metrics; a context manager that closes it.

    Attributes:
        port: Where it listens.
    """

    def __init__(self, server: WSGIServer, thread: Thread) -> None:
        self._server, self._thread = server, thread
        self.port = server.server_port

    def close(self) -> None:
        """Stop answering. Idempotent."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def watch(
    source: TextEmbedder | Pipeline,
    *,
    retriever: CountingRetriever | Sequence[CountingRetriever] = (),
    store: Store | Sequence[Store] = (),
    evaluation: str | os.PathLike[str] | None = None,
    drift: DriftMonitor | None = None,
) -> Registry:
    """Return a registry of what a pipeline does. It costs nothing until somebody asks it.

    Args:
        source: A UnifiedEmbeddingConfig, or an embedder.
        retriever: One or several whose searches are told, added up by mode.
        store: One or several whose collections are told.
        evaluation: The file that `unified-embeddings evaluate --output FILE` writes; it is read
            anew at every scrape, and may not be there yet.
        drift: Made by `watch_drift`, or fed by the application.

    Raises:
        InputError: If the source is neither a config nor an embedder, or two collections have the
            same name.

    Example:
        >>> from qdrant_client import QdrantClient
        >>> from unified_embeddings import UnifiedEmbeddingConfig
        >>> from unified_embeddings.monitoring.registry import watch
        >>> config = UnifiedEmbeddingConfig("mini-m3")
        >>> store = config.vector_store("notes", client=QdrantClient(":memory:"))
        >>> retriever = config.retriever(store)
        >>> registry = watch(config, retriever=retriever, store=store)
        >>> _ = retriever.retrieve("Is there anything yet?")
        >>> 'unified_embeddings_search_seconds_count{mode="hybrid"} 1.0' in registry.text()
        True
        >>> with registry.serve(port=0) as server:    # http://127.0.0.1:PORT/metrics
        ...     server.port > 0
        True
    """
    registry = Registry()
    if isinstance(source, TextEmbedder):
        registry.add(EmbedderCollector(source.stats))
        registry.add(MachineCollector(lambda: source.models))
    elif isinstance(source, Pipeline):
        registry.add(EmbedderCollector(lambda: source.embedder.stats()))
        registry.add(MachineCollector(lambda: source.models))
    else:
        raise InputError(
            f"expected a UnifiedEmbeddingConfig or an embedder, got {type(source).__name__}"
        )
    retrievers = _to_tuple(retriever)
    if retrievers:
        registry.add(RetrieverCollector(retrievers))
    sources: dict[str, Callable[[], Iterable[Metric]]] = {}
    for one in _to_tuple(store):
        name = str(one.collection_name)
        if f"collection {name}" in sources:
            raise InputError(
                f"two stores hold a collection {name!r}, whose metrics would have the same labels; "
                "watch each with a registry of its own"
            )
        sources[f"collection {name}"] = partial(collection_metrics, one.client, name)
    if evaluation is not None:
        sources["evaluation"] = partial(quality_metrics, Path(evaluation))
    if drift is not None:
        sources["drift"] = partial(drift_metrics, drift)
    registry.add(SourceCollector(sources))
    return registry


def watch_drift(
    retriever: WatchedRetriever,
    store: Store,
    *,
    threshold: float | None = None,
    window: int = 1000,
    reference: int = 200,
) -> DriftMonitor:
    """Return a monitor that sees each search of a retriever from now on.

    The collection's centre is estimated from 1,000 of its vectors, drawn at random.

    Args:
        retriever: In the mode "hybrid" or "dense".
        store: Its collection, with vectors compared by their cosine.
        threshold: See `DriftMonitor`, as for the two others.
        window: How many recent queries count.
        reference: How many of the first queries are compared with.

    Raises:
        InputError: If the collection is empty, or an option is out of range.
        StoreError: If the collection's vectors cannot be read or are not compared by their cosine.

    Example:
        >>> from llama_index.core.schema import TextNode
        >>> from qdrant_client import QdrantClient
        >>> from unified_embeddings import UnifiedEmbeddingConfig
        >>> from unified_embeddings.monitoring.registry import watch_drift
        >>> config = UnifiedEmbeddingConfig("mini-m3")
        >>> store = config.vector_store("notes", client=QdrantClient(":memory:"))
        >>> nodes = [TextNode(text="Foxes jump over dogs."), TextNode(text="Dogs sleep at noon.")]
        >>> ids = store.add(config.text_model(nodes))
        >>> retriever = config.retriever(store)
        >>> monitor = watch_drift(retriever, store, threshold=0.3)
        >>> for question in ("What do foxes jump over?", "How is steel made?"):
        ...     _ = retriever.retrieve(question)
        >>> monitor.report().weak_share    # nothing here is near the second one
        0.5
    """
    vectors = sample_vectors(
        store.client, str(store.collection_name), str(store.dense_vector_name), size=_SAMPLE
    )
    monitor = DriftMonitor(
        centre_of(vectors), threshold=threshold, window=window, reference=reference
    )

    @contextlib.contextmanager
    def observe(search: SeenSearch) -> Iterator[None]:
        yield
        if search.vector is not None:
            monitor.observe(search.vector, search.similarity)

    retriever.searches.watch(observe)
    return monitor


def _to_tuple(items: Item | Sequence[Item]) -> tuple[Item, ...]:
    if isinstance(items, Sequence):
        return tuple(items)
    return (items,)
