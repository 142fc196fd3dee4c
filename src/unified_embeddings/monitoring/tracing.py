"""OpenTelemetry spans of what embedders and retrievers do.

What lives here: spans and their attributes. What does not: where spans go, which the application
sets up with OpenTelemetry's SDK.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

from unified_embeddings.errors import MissingExtraError

try:
    from opentelemetry.trace import (
        Span,
        SpanKind,
        StatusCode,
        Tracer,
        TracerProvider,
        get_tracer,
    )
except ImportError as error:
    raise MissingExtraError("OpenTelemetry, for spans,", extra="otel") from error

from unified_embeddings._version import __version__
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.calls import EncodeCall

_NAME = "unified_embeddings"
_MOST_TEXTS = 16
"""Texts of one call that a span holds at most, where texts are asked for."""
_MOST_CHARACTERS = 1000
"""Characters of each that a span holds at most."""


class TracedSearch(Protocol):
    """What is read of a search: `retrievers.timing.Search`."""

    mode: str
    top_k: int
    query: str
    similarity: float | None
    found: int | None


class SearchWatch(Protocol):
    """What takes watchers of searches: `retrievers.timing.SearchCounters`."""

    def watch(
        self, watcher: Callable[[TracedSearch], contextlib.AbstractContextManager[None]]
    ) -> Callable[[], None]:
        """Let something see each search; return what ends that."""
        ...


class TracedRetriever(Protocol):
    """A retriever of ours: UnifiedHybridRetriever, UnifiedMultiModalRetriever."""

    @property
    def searches(self) -> SearchWatch:
        """Return the counters, which take watchers."""
        ...


def trace(
    *parts: TextEmbedder | TracedRetriever,
    tracer_provider: TracerProvider | None = None,
    with_texts: bool = False,
) -> Callable[[], None]:
    """Let embedders and retrievers emit spans from now on.

    A call to an embedder is a span "embed" with the attributes unified_embeddings.model, .role,
    .heads, .texts (how many) and .tokens (how many ran through a model; none where the cache
    answered). A search is a span "search" with .mode, .top_k, .found and .similarity (of the
    nearest point, where there is a dense half); the "embed" of its question lies inside it if its
    embedder is traced too. An error is recorded, by its type alone unless texts are asked for.

    Args:
        *parts: Embedders, such as a config's `.embedder`, and retrievers.
        tracer_provider: Where spans go; None takes the one that the application has set.
        with_texts: Whether spans hold the texts and questions themselves, the first 16 of a call
            and the first 1,000 characters of each. They may be confidential, so they are left out.

    Returns:
        A function that ends it.

    Example:
        >>> from unified_embeddings import UnifiedEmbeddingConfig
        >>> from unified_embeddings.monitoring.tracing import trace
        >>> config = UnifiedEmbeddingConfig("mini-m3")
        >>> stop = trace(config.embedder)    # without a provider of yours, spans go nowhere
        >>> config.embedder.encode_query("What do foxes jump over?").dense.shape
        (1, 384)
        >>> stop()
    """
    tracer = get_tracer(_NAME, __version__, tracer_provider)
    stops: list[Callable[[], None]] = []
    for part in parts:
        if isinstance(part, TextEmbedder):
            stops.append(part.watch(_watch_calls(tracer, with_texts=with_texts)))
        else:
            stops.append(part.searches.watch(_watch_searches(tracer, with_texts=with_texts)))

    def stop() -> None:
        for stop_one in stops:
            stop_one()

    return stop


def _watch_calls(
    tracer: Tracer, *, with_texts: bool
) -> Callable[[EncodeCall], contextlib.AbstractContextManager[None]]:
    @contextlib.contextmanager
    def watch(call: EncodeCall) -> Iterator[None]:
        with _span(tracer, "embed", with_texts=with_texts) as span:
            span.set_attribute(f"{_NAME}.model", call.model)
            span.set_attribute(f"{_NAME}.role", call.role)
            span.set_attribute(f"{_NAME}.heads", call.heads)
            span.set_attribute(f"{_NAME}.texts", len(call.texts))
            if with_texts:
                shown = [str(text)[:_MOST_CHARACTERS] for text in call.texts[:_MOST_TEXTS]]
                span.set_attribute(f"{_NAME}.text", shown)
            yield
            span.set_attribute(f"{_NAME}.tokens", call.tokens)

    return watch


def _watch_searches(
    tracer: Tracer, *, with_texts: bool
) -> Callable[[TracedSearch], contextlib.AbstractContextManager[None]]:
    @contextlib.contextmanager
    def watch(search: TracedSearch) -> Iterator[None]:
        with _span(tracer, "search", with_texts=with_texts) as span:
            span.set_attribute(f"{_NAME}.mode", search.mode)
            span.set_attribute(f"{_NAME}.top_k", search.top_k)
            if with_texts:
                span.set_attribute(f"{_NAME}.query", search.query[:_MOST_CHARACTERS])
            yield
            if search.found is not None:
                span.set_attribute(f"{_NAME}.found", search.found)
            if search.similarity is not None:
                span.set_attribute(f"{_NAME}.similarity", search.similarity)

    return watch


@contextlib.contextmanager
def _span(tracer: Tracer, name: str, *, with_texts: bool) -> Iterator[Span]:
    """Open a span; an error inside it is recorded.

    The message and traceback of an error may quote a text, so both need `with_texts`.
    """
    with tracer.start_as_current_span(
        name,
        kind=SpanKind.INTERNAL,
        record_exception=with_texts,
        set_status_on_exception=False,
    ) as span:
        try:
            yield span
        except BaseException as error:
            _mark_failed(span, error, with_texts=with_texts)
            raise


def _mark_failed(span: Span, error: BaseException, *, with_texts: bool) -> None:
    description = str(error) if with_texts else None
    span.set_attribute("error.type", type(error).__qualname__)
    span.set_status(StatusCode.ERROR, description)
