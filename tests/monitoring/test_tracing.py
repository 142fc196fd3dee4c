"""Spans of embedders and retrievers, in OpenTelemetry's in-memory exporter."""

from __future__ import annotations

import concurrent.futures
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.schema import TextNode
from qdrant_client import QdrantClient

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from unified_embeddings import PairedEmbedder, TextEmbedder
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.llama.text import UnifiedTextEmbedding
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.monitoring.tracing import trace
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever

SECRET = "Foxes jump over dogs."


class Spans:
    """Where spans go."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def take(self) -> list[ReadableSpan]:
        """The spans since the last call, in the order in which they ended."""
        spans = list(self._exporter.get_finished_spans())
        self._exporter.clear()
        return spans


@pytest.fixture
def spans() -> Iterator[Spans]:
    made = Spans()
    yield made
    made.provider.shutdown()


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return {
        name.removeprefix("unified_embeddings."): value
        for name, value in (span.attributes or {}).items()
    }


def filled(embedder: TextEmbedder) -> Any:
    store = build_vector_store(embedder, "docs", client=QdrantClient(":memory:"))
    store.add(UnifiedTextEmbedding(embedder)([TextNode(text=SECRET)]))
    return store


def test_a_call_is_a_span_with_its_texts_and_tokens(spans: Spans) -> None:
    embedder = FakeEmbedder()
    trace(embedder, tracer_provider=spans.provider)
    embedder.encode_documents([SECRET, "Dogs sleep."])
    embedder.encode_documents([SECRET])
    embedder.encode([SECRET], role="query", heads=("dense",))
    first, second, third = spans.take()
    assert first.name == "embed"
    assert attributes(first) == {
        "model": "fake",
        "role": "document",
        "heads": ("dense", "sparse"),
        "texts": 2,
        "tokens": 6 + 4,  # four words and two, two special tokens each
    }
    assert attributes(second)["tokens"] == 0  # from the cache
    assert attributes(third)["heads"] == ("dense",)


def test_the_questions_span_lies_inside_the_searchs(spans: Spans) -> None:
    embedder = FakeEmbedder()
    retriever = UnifiedHybridRetriever(filled(embedder), embedder, similarity_top_k=7)
    trace(embedder, retriever, tracer_provider=spans.provider)
    retriever.retrieve(SECRET)
    embed, search = spans.take()
    assert (embed.name, search.name) == ("embed", "search")
    assert embed.parent is not None
    assert embed.parent.span_id == search.context.span_id
    told = attributes(search)
    assert told.pop("similarity") == pytest.approx(1.0, abs=1e-5)
    assert told == {"mode": "hybrid", "top_k": 7, "found": 1}


async def test_an_awaited_search_is_the_same(spans: Spans) -> None:
    embedder = FakeEmbedder()
    retriever = UnifiedHybridRetriever(filled(embedder), embedder)
    trace(embedder, retriever, tracer_provider=spans.provider)
    await retriever.aretrieve("foxes")
    embed, search = spans.take()
    assert embed.parent is not None
    assert embed.parent.span_id == search.context.span_id


def test_no_span_holds_a_text_unless_asked_for(spans: Spans) -> None:
    embedder = FakeEmbedder()
    retriever = UnifiedHybridRetriever(filled(embedder), embedder)
    stop = trace(embedder, retriever, tracer_provider=spans.provider)
    retriever.retrieve(SECRET)
    with pytest.raises(InputError, match="never seen"):
        failing(FakeEmbedder(), spans).encode_query(SECRET + " never seen")
    assert "oxes" not in "".join(span.to_json() for span in spans.take())
    stop()
    retriever.retrieve(SECRET)
    assert spans.take() == []
    trace(embedder, retriever, tracer_provider=spans.provider, with_texts=True)
    embedder.encode_documents(["x" * 2000] * 20)
    retriever.retrieve(SECRET)
    documents, embed, search = spans.take()
    assert [len(text) for text in attributes(documents)["text"]] == [1000] * 16
    assert attributes(embed)["text"] == (SECRET,)
    assert attributes(search)["query"] == SECRET


def failing(embedder: FakeEmbedder, spans: Spans, *, with_texts: bool = False) -> FakeEmbedder:
    """The embedder, traced, which fails with a message that quotes the text."""

    def run(texts: Any, role: Any, heads: Any) -> Any:
        raise InputError(f"cannot embed {texts}")

    embedder._run = run  # type: ignore[method-assign]
    trace(embedder, tracer_provider=spans.provider, with_texts=with_texts)
    return embedder


@pytest.mark.parametrize("with_texts", [False, True])
def test_an_error_marks_the_span_and_passes(spans: Spans, with_texts: bool) -> None:
    embedder = failing(FakeEmbedder(), spans, with_texts=with_texts)
    with pytest.raises(InputError, match="cannot embed"):
        embedder.encode_query(SECRET)
    (span,) = spans.take()
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "InputError"
    assert (span.status.description is not None) == with_texts
    assert bool(span.events) == with_texts
    assert "tokens" not in attributes(span)


def test_a_pairs_tokens_are_those_of_both_models(spans: Spans) -> None:
    dense, sparse = FakeEmbedder(heads=("dense",)), FakeEmbedder(heads=("sparse",))
    pair = PairedEmbedder(dense, sparse, model_name="pair")
    trace(pair, tracer_provider=spans.provider)
    pair.encode_documents([SECRET])
    (span,) = spans.take()
    assert attributes(span)["tokens"] == 12


def test_calls_of_several_threads_count_their_own_tokens(spans: Spans) -> None:
    embedder = FakeEmbedder(cache=None)
    trace(embedder, tracer_provider=spans.provider)
    texts = [" ".join(["word"] * count) for count in range(1, 33)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(embedder.encode_query, texts))
    assert sorted(attributes(span)["tokens"] for span in spans.take()) == list(range(3, 35))


def test_spans_do_not_travel_with_a_pickle(spans: Spans) -> None:
    embedder = FakeEmbedder()
    trace(embedder, tracer_provider=spans.provider)
    pickle.loads(pickle.dumps(embedder)).encode_query(SECRET)
    assert spans.take() == []
