"""A query's way from the public call: what listeners see of it, and how many calls deep it is."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from llama_index.core.base.embeddings.base import BaseEmbedding, mean_agg
from llama_index.core.bridge.pydantic import Field
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index_instrumentation import get_dispatcher, root_dispatcher
from llama_index_instrumentation.dispatcher import Dispatcher

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.bge_m3 import BGE_M3_Embedder
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.llama.text import UnifiedTextEmbedding

QUESTION = "Which foxes jump over 狐 and ünïcode?"
OWN_MODULE = "unified_embeddings.llama.text"


class Heard(BaseEventHandler):
    """Keeps the events that it is told of."""

    events: list[Any] = Field(default_factory=list)

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        del kwargs
        self.events.append(event)


class Limiter:
    """Counts how often it was asked for leave."""

    def __init__(self) -> None:
        self.asked = 0

    def acquire(self) -> None:
        self.asked += 1


@contextmanager
def handled(dispatcher: Dispatcher, events: Heard, spans: SimpleSpanHandler) -> Iterator[None]:
    former = dispatcher.event_handlers, dispatcher.span_handlers
    dispatcher.event_handlers = [*former[0], events]
    dispatcher.span_handlers = [*former[1], spans]
    try:
        yield
    finally:
        dispatcher.event_handlers, dispatcher.span_handlers = former


@pytest.fixture
def model() -> UnifiedTextEmbedding:
    return UnifiedTextEmbedding(FakeEmbedder(dimension=16))


def stock(model: BaseEmbedding, text: str = QUESTION) -> list[float]:
    """Return what LlamaIndex's own method gives, which is not shortened."""
    vector: list[float] = BaseEmbedding.get_query_embedding(model, text)
    return vector


def test_the_vector_is_that_of_llama_indexs_own_method(model: UnifiedTextEmbedding) -> None:
    expected = stock(model)
    for _ in range(2):  # computed, and cached
        vector = model.get_query_embedding(QUESTION)
        assert vector == expected
        assert {type(number) for number in vector} == {float}
    assert asyncio.run(model.aget_query_embedding(QUESTION)) == expected


def test_one_query_is_its_own_mean(model: UnifiedTextEmbedding) -> None:
    expected = mean_agg([stock(model)])
    assert model.get_agg_embedding_from_queries([QUESTION]) == expected
    assert asyncio.run(model.aget_agg_embedding_from_queries([QUESTION])) == expected
    sums = model.get_agg_embedding_from_queries([QUESTION], agg_fn=lambda rows: [float(len(rows))])
    assert sums == [1.0]
    two = mean_agg([stock(model, "a"), stock(model, "b")])
    assert model.get_agg_embedding_from_queries(["a", "b"]) == two


@pytest.mark.parametrize("kind", ["", "a"], ids=["sync", "async"])
@pytest.mark.parametrize("name", ["root", OWN_MODULE, BaseEmbedding.__module__])
def test_whoever_listens_is_told_as_before(
    model: UnifiedTextEmbedding, name: str, kind: str
) -> None:
    def ask(text: str) -> list[float]:
        if kind:
            return asyncio.run(model.aget_query_embedding(text))
        return model.get_query_embedding(text)

    dispatcher = root_dispatcher if name == "root" else get_dispatcher(name)
    events, spans = Heard(), SimpleSpanHandler()
    ask("unheard")
    with handled(dispatcher, events, spans):
        vector = ask(QUESTION)
    ask("unheard, too")
    ended = [event for event in events.events if isinstance(event, EmbeddingEndEvent)]
    spanned = [span.id_.split("-")[0] for span in spans.completed_spans]
    if name != OWN_MODULE:  # LlamaIndex's events come from its own module
        assert [(event.chunks, event.embeddings) for event in ended] == [([QUESTION], [vector])]
    public = f"{kind}get_query_embedding"
    # The asynchronous method calls the other one in a thread.
    private = ["_get_query_embedding", f"_{public}"][: 1 + len(kind)]
    expected = {
        "root": [*private, public],
        OWN_MODULE: private,
        BaseEmbedding.__module__: [public],
    }
    assert spanned == [f"UnifiedTextEmbedding.{method}" for method in expected[name]]


def test_callbacks_are_called() -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    model = UnifiedTextEmbedding(FakeEmbedder(), callback_manager=CallbackManager([debug]))
    model.get_query_embedding(QUESTION)
    pairs = debug.get_event_pairs(CBEventType.EMBEDDING)
    assert len(pairs) == 1
    model.callback_manager.remove_handler(debug)
    model.get_query_embedding(QUESTION)
    assert len(debug.get_event_pairs(CBEventType.EMBEDDING)) == 1


def test_a_rate_limiter_and_a_cache_of_llama_index_are_asked() -> None:
    limiter, store = Limiter(), SimpleKVStore()
    store.put(QUESTION, {"id": [0.5, 0.25]}, collection="embeddings")
    limited = UnifiedTextEmbedding(FakeEmbedder(), rate_limiter=limiter)
    limited.get_query_embedding(QUESTION)
    assert limiter.asked == 1
    cached = UnifiedTextEmbedding(FakeEmbedder(), embeddings_cache=store)
    with mock.patch.object(SimpleKVStore, "__len__", return_value=1, create=True):
        assert cached.get_query_embedding(QUESTION) == [0.5, 0.25]


def test_releases_of_llama_index_without_rate_limiters() -> None:
    """0.14.0 has no such field; the package allows it."""
    model = UnifiedTextEmbedding(FakeEmbedder())
    expected = model.get_query_embedding("owls")
    del model.__dict__["rate_limiter"]
    with pytest.raises(AttributeError):
        _ = model.rate_limiter
    assert model.get_query_embedding("owls") == expected


class Halved(UnifiedTextEmbedding):
    def _get_query_embedding(self, query: str) -> list[float]:
        return [number / 2 for number in super()._get_query_embedding(query)]


def test_a_method_of_a_subclass_is_called(model: UnifiedTextEmbedding) -> None:
    halved = Halved(model.embedder).get_query_embedding(QUESTION)
    assert halved == [number / 2 for number in stock(model)]


def test_a_method_put_in_place_of_ours_or_theirs_is_called(model: UnifiedTextEmbedding) -> None:
    with mock.patch.object(UnifiedTextEmbedding, "_get_query_embedding", return_value=[1.0]):
        assert model.get_query_embedding(QUESTION) == [1.0]
    with mock.patch.object(BaseEmbedding, "get_query_embedding", return_value=[2.0]):
        assert model.get_query_embedding(QUESTION) == [2.0]
    assert model.get_query_embedding(QUESTION) == stock(model)


def test_what_is_no_text_is_refused_as_before(model: UnifiedTextEmbedding) -> None:
    for bad in (3, None, ["a"], "a\ud800"):
        with pytest.raises(InputError) as ours:
            model.get_query_embedding(bad)  # type: ignore[arg-type]
        with pytest.raises(InputError) as theirs:
            stock(model, bad)  # type: ignore[arg-type]
        assert str(ours.value) == str(theirs.value)


def test_nothing_is_noted_in_a_callback_manager_without_handlers(
    model: UnifiedTextEmbedding,
) -> None:
    # LlamaIndex's own method adds an id for each query, for ever.
    before = sum(map(len, model.callback_manager.trace_map.values()))
    for number in range(50):
        model.get_query_embedding(f"{QUESTION} {number}")
    assert sum(map(len, model.callback_manager.trace_map.values())) == before


# --- how deep -----------------------------------------------------------------------------------


def depth_at(owner: type, name: str, embedder: TextEmbedder, call: Any) -> int:
    """Return how many Python calls lie between a call of ours and a function of an engine."""
    depths = []
    function = owner.__dict__[name]
    here = sys._getframe()

    def noting(self: Any, *arguments: Any, **options: Any) -> Any:
        depth, frame = 0, sys._getframe().f_back
        while frame is not here:
            assert frame is not None
            depth, frame = depth + 1, frame.f_back
        depths.append(depth)
        return function(self, *arguments, **options)

    with mock.patch.object(owner, name, noting):
        call(embedder)
    return depths[0]


def ask_embedder(embedder: TextEmbedder) -> None:
    embedder.encode_query(QUESTION)


def ask_model(embedder: TextEmbedder) -> None:
    UnifiedTextEmbedding(embedder).get_query_embedding(QUESTION)


@pytest.mark.parametrize(
    ("engine", "call", "most"),
    # With ask_model it was 10 and 12 calls while each query went through LlamaIndex's spans.
    [
        ("torch", ask_embedder, 7),
        ("torch", ask_model, 8),
        ("onnx", ask_embedder, 9),
        ("onnx", ask_model, 10),
    ],
)
def test_the_way_to_the_engine_does_not_grow(xlmr: Path, engine: str, call: Any, most: int) -> None:
    embedder = BGE_M3_Embedder(str(xlmr), engine=engine, device="cpu", precision="fp32")
    embedder.encode_query("loads the model")
    if engine == "torch":
        from unified_embeddings.engines.encoder import Encoder

        owner: type = Encoder
        name = "__call__"
    else:
        onnxruntime = pytest.importorskip("onnxruntime")
        kinds = onnxruntime.InferenceSession.__mro__
        owner, name = next(kind for kind in kinds if "run" in kind.__dict__), "run"
    assert depth_at(owner, name, embedder, call) <= most


def test_a_cached_query_reaches_no_engine_and_claims_nothing(xlmr: Path) -> None:
    embedder = BGE_M3_Embedder(str(xlmr), engine="torch", device="cpu", precision="fp32")
    first = embedder.encode_query(QUESTION)
    with (
        mock.patch.object(type(embedder.cache), "claim", side_effect=AssertionError),
        mock.patch.object(embedder, "_run", side_effect=AssertionError),
    ):
        second = embedder.encode_query(QUESTION)
    assert first.dense is not None
    assert second.dense is not None
    np.testing.assert_array_equal(first.dense, second.dense)
    assert first.sparse == second.sparse
    # What a caller does to an answer is not done to the cache.
    second.dense[:] = 0
    again = embedder.encode_query(QUESTION).dense
    assert again is not None
    np.testing.assert_array_equal(first.dense, again)
