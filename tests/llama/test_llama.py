"""The LlamaIndex adapters: embeddings, vector store, and LlamaIndex's own pipelines over them."""

from __future__ import annotations

import asyncio
import copy
import gc
import io
import json
import pickle
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import (
    Document,
    PropertyGraphIndex,
    Settings,
    StorageContext,
    VectorStoreIndex,
)
from llama_index.core.graph_stores import SimplePropertyGraphStore
from llama_index.core.graph_stores.types import (
    KG_NODES_KEY,
    KG_RELATIONS_KEY,
    EntityNode,
    Relation,
)
from llama_index.core.indices.property_graph import ImplicitPathExtractor, VectorContextRetriever
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SemanticSplitterNodeParser, SentenceSplitter
from llama_index.core.schema import BaseNode, MetadataMode, Node, TextNode, TransformComponent
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores.utils import metadata_dict_to_node
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient, models

from conftest import fake_config
from unified_embeddings.cache.embedding_cache import EmbeddingCache
from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.bge_m3 import BGE_M3_Embedder
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import (
    FingerprintMismatchError,
    InputError,
    ModelLoadError,
    StoreError,
)
from unified_embeddings.llama.text import UnifiedSparseEmbedding, UnifiedTextEmbedding
from unified_embeddings.stores.edge.client import EdgeQdrantClient

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "Retrieval finds documents; ranking orders them.",
    "fusion merges two rankings into one",
    "敏捷的棕色狐狸跳过了懒狗。",
    "",
    "  \n ",
    "Привет, мир!",
    "The quick brown fox jumps over the lazy dog.",  # once more
]
WIDTH = 32
pytestmark = pytest.mark.filterwarnings("ignore:Failed to obtain server version")


@pytest.fixture(scope="module")
def oracle() -> TextEmbedder:
    """Says what a text's vectors are; shares no cache with what is tested."""
    return FakeEmbedder(WIDTH)


@pytest.fixture
def config() -> UnifiedEmbeddingConfig:
    return fake_config()


def make_config(folder: Path, **options: Any) -> UnifiedEmbeddingConfig:
    return UnifiedEmbeddingConfig(folder, precision="fp32", device="cpu", **options)


@pytest.fixture(scope="module")
def real_oracle(xlmr: Path) -> TextEmbedder:
    return BGE_M3_Embedder(xlmr, precision="fp32", device="cpu")


@pytest.fixture
def real_config(xlmr: Path) -> UnifiedEmbeddingConfig:
    return make_config(xlmr)


@pytest.fixture
def client() -> Iterator[QdrantClient]:
    client = QdrantClient(":memory:")
    yield client
    client.close()


def dense_of(oracle: TextEmbedder, texts: Sequence[str]) -> np.ndarray:
    dense = oracle.encode_documents(texts).dense
    assert dense is not None
    return dense


def sparse_of(oracle: TextEmbedder, texts: Sequence[str]) -> list[dict[int, float]]:
    return [dict(vector) for vector in oracle.encode_documents(texts).sparse or []]


def close_to(vectors: Any) -> Any:
    """Compare up to rounding. A text's last digits depend on what it was batched with."""
    return pytest.approx(vectors, abs=1e-5)


# --- the embedding models -----------------------------------------------------------------------

sync_and_async = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


async def call(model: Any, method: str, argument: Any, *, is_async: bool) -> Any:
    if is_async:
        return await getattr(model, f"a{method}")(argument)
    return getattr(model, method)(argument)


class TestTextEmbedding:
    @sync_and_async
    async def test_one_text_at_a_time(
        self, config: UnifiedEmbeddingConfig, oracle: TextEmbedder, is_async: bool
    ) -> None:
        for method in ("get_text_embedding", "get_query_embedding"):
            for text, expected in zip(TEXTS, dense_of(oracle, TEXTS), strict=True):
                vector = await call(config.text_model, method, text, is_async=is_async)
                assert vector == close_to(expected.tolist())
                assert {type(value) for value in vector} == {float}

    @pytest.mark.parametrize("batch", [1, 3, 128])
    @sync_and_async
    async def test_batches_keep_the_order(
        self, oracle: TextEmbedder, batch: int, is_async: bool
    ) -> None:
        model = UnifiedTextEmbedding(FakeEmbedder(WIDTH), embed_batch_size=batch, num_workers=3)
        vectors = await call(model, "get_text_embedding_batch", TEXTS, is_async=is_async)
        np.testing.assert_allclose(vectors, dense_of(oracle, TEXTS), atol=1e-5)

    @sync_and_async
    async def test_no_texts_give_no_vectors(
        self, config: UnifiedEmbeddingConfig, is_async: bool
    ) -> None:
        method = "get_text_embedding_batch"
        assert await call(config.text_model, method, [], is_async=is_async) == []
        assert await call(config.sparse_model, method, [], is_async=is_async) == []

    @pytest.mark.parametrize("bad", [None, 7, "\ud800"])
    @sync_and_async
    async def test_what_is_no_text_is_an_input_error_with_its_place(
        self, config: UnifiedEmbeddingConfig, bad: Any, is_async: bool
    ) -> None:
        texts = ["fox", "dog", bad]
        for model in (config.text_model, config.sparse_model):
            with pytest.raises(InputError) as caught:
                await call(model, "get_text_embedding_batch", texts, is_async=is_async)
            assert caught.value.index == 2
            with pytest.raises(InputError):
                await call(model, "get_query_embedding", bad, is_async=is_async)

    @pytest.mark.parametrize(
        "texts",
        [{"q": "a fox"}, io.StringIO("a fox"), {"a fox"}, "a fox", None, 7, b"a fox"],
        ids=lambda texts: type(texts).__name__,
    )
    @sync_and_async
    async def test_what_is_no_list_of_texts_is_an_input_error(
        self, config: UnifiedEmbeddingConfig, texts: Any, is_async: bool
    ) -> None:
        for model in (config.text_model, config.sparse_model):
            for method in ("get_text_embedding_batch", "get_agg_embedding_from_queries"):
                with pytest.raises(InputError, match=r"expected a list of texts, got \w+; "):
                    await call(model, method, texts, is_async=is_async)

    @sync_and_async
    async def test_any_iterable_that_is_a_list_in_spirit_is_taken(
        self, config: UnifiedEmbeddingConfig, is_async: bool
    ) -> None:
        texts = ["a fox", "an owl"]
        for model in (config.text_model, config.sparse_model):
            expected = await call(model, "get_text_embedding_batch", texts, is_async=is_async)
            for same in (tuple(texts), np.array(texts), (text for text in texts)):
                given = await call(model, "get_text_embedding_batch", same, is_async=is_async)
                assert given == expected

    @sync_and_async
    async def test_the_mean_of_several_queries(
        self, config: UnifiedEmbeddingConfig, oracle: TextEmbedder, is_async: bool
    ) -> None:
        queries = ["lazy dog", "quick fox"]
        vector = await call(
            config.text_model, "get_agg_embedding_from_queries", queries, is_async=is_async
        )
        assert vector == close_to(dense_of(oracle, queries).mean(axis=0).tolist())

    def test_similarity_is_the_cosine(
        self, config: UnifiedEmbeddingConfig, oracle: TextEmbedder
    ) -> None:
        model = config.text_model
        a, b = dense_of(oracle, TEXTS[:2]).astype(np.float64)
        one, other = (model.get_text_embedding(text) for text in TEXTS[:2])
        assert model.similarity(one, other) == close_to(a @ b)


class TestSparseEmbedding:
    @sync_and_async
    async def test_one_text_at_a_time(
        self, config: UnifiedEmbeddingConfig, oracle: TextEmbedder, is_async: bool
    ) -> None:
        for method in ("get_text_embedding", "get_query_embedding"):
            for text, expected in zip(TEXTS, sparse_of(oracle, TEXTS), strict=True):
                weights = await call(config.sparse_model, method, text, is_async=is_async)
                assert isinstance(weights, dict)
                assert weights == close_to(expected)

    @sync_and_async
    async def test_batches_keep_the_order(self, oracle: TextEmbedder, is_async: bool) -> None:
        model = UnifiedSparseEmbedding(FakeEmbedder(WIDTH), embed_batch_size=3)
        batch = await call(model, "get_text_embedding_batch", TEXTS, is_async=is_async)
        for weights, expected in zip(batch, sparse_of(oracle, TEXTS), strict=True):
            assert weights == close_to(expected)

    def test_costs_nothing_after_the_text_model(self, config: UnifiedEmbeddingConfig) -> None:
        config.text_model.get_text_embedding_batch(TEXTS)
        config.text_model.get_query_embedding("lazy dog")
        before = config.embedder.stats().forwards
        config.sparse_model.get_text_embedding_batch(TEXTS)
        config.sparse_model.get_query_embedding("lazy dog")
        assert config.embedder.stats().forwards == before


class Hold:
    """A place where a worker thread waits until the event loop releases it.

    A blocked event loop could not release it, and the wait would time out instead.
    """

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.release = threading.Event()
        self.was_released = False

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def held(*args: Any, **kwargs: Any) -> Any:
            self.entered.set()
            self.was_released = self.release.wait(timeout=10)
            return function(*args, **kwargs)

        return held

    async def let_go(self, task: asyncio.Task[Any]) -> None:
        """Wait for the worker to arrive, run the loop for some turns, then release it."""
        while not self.entered.is_set() and not task.done():
            await asyncio.sleep(0.001)
        for _ in range(10):
            await asyncio.sleep(0)
        self.release.set()


class TestEventLoop:
    @pytest.mark.parametrize("kind", [UnifiedTextEmbedding, UnifiedSparseEmbedding])
    @pytest.mark.parametrize(
        ("method", "argument"),
        [
            ("aget_text_embedding", "quick fox"),
            ("aget_query_embedding", "quick fox"),
            ("aget_text_embedding_batch", TEXTS),
        ],
    )
    async def test_runs_while_texts_are_encoded(
        self,
        config: UnifiedEmbeddingConfig,
        kind: Any,
        method: str,
        argument: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        hold = Hold()
        monkeypatch.setattr(config.embedder, "_run", hold.wrap(config.embedder._run))
        task = asyncio.create_task(getattr(kind(config.embedder), method)(argument))
        await hold.let_go(task)
        assert await task
        assert hold.was_released

    async def test_runs_while_a_local_qdrant_stores(
        self, config: UnifiedEmbeddingConfig, client: QdrantClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        index = index_of(config, config.vector_store("docs", client=client))
        hold = Hold()
        monkeypatch.setattr(client, "upsert", hold.wrap(client.upsert))
        task = asyncio.create_task(index.ainsert_nodes([TextNode(text="quick fox")]))
        await hold.let_go(task)
        await task
        assert hold.was_released
        assert client.count("docs").count == 1


# --- copies and serialised forms ----------------------------------------------------------------

COPIES: dict[str, Callable[[Any], Any]] = {
    "dict": lambda model: type(model).from_dict(model.to_dict()),
    "json": lambda model: type(model).from_json(model.to_json()),
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "deepcopy": copy.deepcopy,
}
SPARSE_COPIES: dict[str, Callable[[Any], Any]] = {
    "dump": lambda model: type(model)(**without_class(model.model_dump())),
    "json": lambda model: type(model)(**without_class(json.loads(model.model_dump_json()))),
    "pickle": COPIES["pickle"],
    "deepcopy": COPIES["deepcopy"],
}


def without_class(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != "class_name"}


class TestCopies:
    @pytest.mark.parametrize("way", COPIES)
    @pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
    def test_of_the_text_model_give_equal_vectors(
        self, real_config: UnifiedEmbeddingConfig, real_oracle: TextEmbedder, way: str, used: bool
    ) -> None:
        model = UnifiedTextEmbedding(real_config.embedder, embed_batch_size=5)
        if used:
            model.get_text_embedding("fox")
        other = COPIES[way](model)
        assert type(other) is UnifiedTextEmbedding
        assert other.model_name == real_config.embedder.model_name
        assert other.embed_batch_size == 5
        vectors = other.get_text_embedding_batch(TEXTS)
        np.testing.assert_allclose(vectors, dense_of(real_oracle, TEXTS), atol=1e-5)

    @pytest.mark.parametrize("way", SPARSE_COPIES)
    def test_of_the_sparse_model_give_equal_vectors(
        self, real_config: UnifiedEmbeddingConfig, real_oracle: TextEmbedder, way: str
    ) -> None:
        other = SPARSE_COPIES[way](real_config.sparse_model)
        assert type(other) is UnifiedSparseEmbedding
        for weights, expected in zip(
            other.get_text_embedding_batch(TEXTS), sparse_of(real_oracle, TEXTS), strict=True
        ):
            assert weights == close_to(expected)

    @pytest.mark.parametrize("way", COPIES)
    def test_keep_the_options(self, xlmr: Path, real_oracle: TextEmbedder, way: str) -> None:
        other = COPIES[way](make_config(xlmr, max_length=4, batch_tokens=99).text_model)
        assert other.embedder.max_length == 4
        assert other.embedder.options["batch_tokens"] == 99
        assert other.embedder.options["precision"] == "fp32"
        # Four tokens: two of the words and the two special ones.
        assert other.get_text_embedding("quick brown fox jumps") == close_to(
            dense_of(real_oracle, ["quick brown"])[0].tolist()
        )

    def test_the_serialised_form_is_plain_json_without_the_vectors_seen(
        self, config: UnifiedEmbeddingConfig
    ) -> None:
        fresh = config.text_model.to_dict()
        assert json.loads(json.dumps(fresh)) == fresh
        config.text_model.get_text_embedding_batch(TEXTS)
        assert config.text_model.to_dict() == fresh
        assert fresh["class_name"] == "UnifiedTextEmbedding"

    def test_restoring_loads_nothing_until_the_first_text(
        self, real_config: UnifiedEmbeddingConfig, tmp_path: Path
    ) -> None:
        fields = real_config.text_model.to_dict() | {"model_name": str(tmp_path / "gone")}
        restored = UnifiedTextEmbedding.from_dict(fields)
        with pytest.raises(ModelLoadError, match="gone"):
            restored.get_text_embedding("fox")

    def test_a_model_made_from_its_fields_alone_is_equal_too(
        self, xlmr: Path, real_oracle: TextEmbedder
    ) -> None:
        options = {"precision": "fp32", "device": "cpu"}
        text = UnifiedTextEmbedding(model_name=str(xlmr), options=options)
        sparse = UnifiedSparseEmbedding(model_name=str(xlmr), options=options)
        np.testing.assert_allclose(
            text.get_text_embedding_batch(TEXTS), dense_of(real_oracle, TEXTS), atol=1e-5
        )
        (expected,) = sparse_of(real_oracle, TEXTS[:1])
        assert sparse.get_text_embedding(TEXTS[0]) == close_to(expected)


class TestConfig:
    @pytest.fixture(autouse=True)
    def _settings_as_before(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Settings, "_embed_model", Settings._embed_model)
        monkeypatch.setattr(Settings, "_node_parser", Settings._node_parser)
        monkeypatch.setattr(Settings, "_transformations", Settings._transformations)

    def test_all_parts_share_one_embedder(self, config: UnifiedEmbeddingConfig) -> None:
        assert config.text_model is config.text_model
        assert config.text_model.embedder is config.embedder
        config.text_model.get_text_embedding("fox")
        config.sparse_model.get_text_embedding("fox")
        assert config.embedder.stats().texts == 2

    def test_configure_settings_makes_llama_index_use_the_models_and_changes_nothing_else(
        self,
        config: UnifiedEmbeddingConfig,
        client: QdrantClient,
        oracle: TextEmbedder,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(Settings, "image_embed_model", None, raising=False)
        ours = (
            "_embed_model", "_node_parser", "_transformations", "image_embed_model",
            "_callback_manager",  # any model's
        )  # fmt: skip
        before = {k: v for k, v in vars(Settings).items() if k not in ours}
        config.configure_settings()
        assert Settings.embed_model is config.text_model
        assert Settings.image_embed_model is config.image_model
        assert {k: v for k, v in vars(Settings).items() if k not in ours} == before
        VectorStoreIndex(
            [TextNode(text=text) for text in TEXTS[:3]],
            storage_context=StorageContext.from_defaults(
                vector_store=config.vector_store("docs", client=client)
            ),
        )
        assert_holds(client, "docs", TEXTS[:3], oracle)


# --- the vector store ---------------------------------------------------------------------------


def index_of(
    config: UnifiedEmbeddingConfig, store: QdrantVectorStore, nodes: Sequence[BaseNode] = ()
) -> VectorStoreIndex:
    index = VectorStoreIndex.from_vector_store(store, embed_model=config.text_model)
    if nodes:
        index.insert_nodes(list(nodes))
    return index


def points_of(client: QdrantClient, name: str) -> list[models.Record]:
    points, _ = client.scroll(name, limit=100_000, with_vectors=True)
    return points


def embedded_text(point: models.Record) -> str:
    assert point.payload is not None
    return metadata_dict_to_node(point.payload).get_content(MetadataMode.EMBED)


def assert_holds(
    client: QdrantClient, name: str, texts: Sequence[str], oracle: TextEmbedder
) -> None:
    """The collection holds these texts, each with its own dense and sparse vector."""
    points = points_of(client, name)
    stored = [embedded_text(point) for point in points]
    assert sorted(stored) == sorted(texts)
    for point, dense, sparse in zip(
        points, dense_of(oracle, stored), sparse_of(oracle, stored), strict=True
    ):
        assert isinstance(point.vector, dict)
        assert point.vector["text-dense"] == close_to(dense.tolist())
        assert weights_of(point) == close_to(sparse)


def weights_of(point: models.Record) -> dict[int, float]:
    assert isinstance(point.vector, dict)
    vector = point.vector["text-sparse-new"]
    assert isinstance(vector, models.SparseVector)
    return dict(zip(vector.indices, vector.values, strict=True))


def collection_info(config: UnifiedEmbeddingConfig) -> Any:
    """Return what a server reports about a collection of ours, as JSON."""
    client = QdrantClient(":memory:")
    config.vector_store("docs", client=client)
    return client.get_collection("docs").model_dump(mode="json")


class TestWhereTheStoreLies:
    @pytest.mark.parametrize(
        "places",
        [
            (),
            ("url", "path"),
            ("url", "client"),
            ("path", "client"),
            ("url", "path", "client"),
        ],
        ids=lambda places: "+".join(places) or "none",
    )
    def test_exactly_one_place_must_be_given(
        self,
        config: UnifiedEmbeddingConfig,
        client: QdrantClient,
        tmp_path: Path,
        places: tuple[str, ...],
    ) -> None:
        given = {"url": "http://localhost:6333", "path": tmp_path / "q", "client": client}
        with pytest.raises(InputError, match="exactly one"):
            config.vector_store("docs", **{place: given[place] for place in places})
        assert not (tmp_path / "q").exists()

    @pytest.mark.parametrize("name", ["", "  ", None, 7])
    def test_a_collection_needs_a_name(
        self, config: UnifiedEmbeddingConfig, client: QdrantClient, name: Any
    ) -> None:
        with pytest.raises(InputError, match="name"):
            config.vector_store(name, client=client)
        assert client.get_collections().collections == []

    def test_a_client_of_qdrants_own_core_is_taken_as_it_is(
        self, config: UnifiedEmbeddingConfig, oracle: TextEmbedder, tmp_path: Path
    ) -> None:
        with EdgeQdrantClient(tmp_path / "q") as edge:
            store = config.vector_store("docs", client=edge, on_disk_payload=True)
            assert store.client is edge
            index_of(config, store, [TextNode(text=text) for text in TEXTS])
            assert_holds(edge, "docs", TEXTS, oracle)
            info = edge.get_collection("docs")
            assert info.config.params.on_disk_payload is True
            assert "doc_id" in info.payload_schema
            with pytest.raises(StoreError, match="shard_number=2"):
                config.vector_store("others", client=edge, shard_number=2)

    def test_what_a_cluster_needs_reaches_the_server(self, config: UnifiedEmbeddingConfig) -> None:
        asked: list[tuple[str, str, Any]] = []
        info = collection_info(config)

        class Server(BaseHTTPRequestHandler):
            """The part of Qdrant's REST interface that creating a collection needs."""

            def answer(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(length) or "null")
                asked.append((self.command, self.path.split("?")[0], body))
                made = any(method == "PUT" for method, _, _ in asked)
                result: Any = info
                if self.path == "/aliases":
                    result = {"aliases": []}
                elif "/exists" in self.path:
                    result = {"exists": made}
                elif "/index" in self.path:
                    result = {"operation_id": 0, "status": "completed"}
                elif self.command == "PUT":
                    result = True
                answer = json.dumps({"result": result, "status": "ok", "time": 0}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_PUT = answer  # noqa: N815  # as http.server calls them

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            config.vector_store(
                "docs",
                url=f"http://127.0.0.1:{server.server_port}",
                shard_number=6,
                replication_factor=2,
                write_consistency_factor=2,
            )
        finally:
            server.shutdown()
            server.server_close()
        ((_, _, made),) = [one for one in asked if one[:2] == ("PUT", "/collections/docs")]
        assert made["shard_number"] == 6
        assert made["replication_factor"] == 2
        assert made["write_consistency_factor"] == 2
        assert made["metadata"]["unified_embeddings"]["fingerprint"] == config.embedder.fingerprint

    def test_a_server_that_is_not_there_is_a_store_error(
        self, config: UnifiedEmbeddingConfig
    ) -> None:
        with pytest.raises(StoreError, match="docs") as caught:
            config.vector_store("docs", url="http://127.0.0.1:1")
        assert caught.value.collection == "docs"

    def test_another_models_collection_is_refused(
        self, config: UnifiedEmbeddingConfig, client: QdrantClient
    ) -> None:
        config.vector_store("docs", client=client)
        other = fake_config(model_name="other")
        with pytest.raises(FingerprintMismatchError):
            other.vector_store("docs", client=client)
        other.vector_store("others", client=client)

    def test_a_path_opened_twice_is_shared(
        self, config: UnifiedEmbeddingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        first = config.vector_store("docs", path=tmp_path / "q")
        index_of(config, first, [TextNode(text="quick fox")])
        for same in ("q", str(tmp_path / "q"), tmp_path / "." / "x" / ".." / "q"):
            again = config.vector_store("docs", path=same)
            assert again.client is first.client
            assert again.client.count("docs").count == 1
        other = config.vector_store("others", path=tmp_path / "q")
        assert other.client.count("others").count == 0
        assert config.vector_store("docs", path=tmp_path / "r").client is not first.client

    @pytest.mark.parametrize("way", ["closed", "forgotten"])
    def test_a_path_reopened_later_holds_what_was_stored(
        self, config: UnifiedEmbeddingConfig, oracle: TextEmbedder, tmp_path: Path, way: str
    ) -> None:
        store: QdrantVectorStore | None = config.vector_store("docs", path=tmp_path / "q")
        assert store is not None
        index_of(config, store, [TextNode(text=text) for text in TEXTS])
        client = store.client
        if way == "closed":
            client.close()
        else:
            del store, client
            gc.collect()
        reopened = config.vector_store("docs", path=tmp_path / "q")
        assert_holds(reopened.client, "docs", TEXTS, oracle)
        index_of(config, reopened, [TextNode(text="one more")])
        assert_holds(reopened.client, "docs", [*TEXTS, "one more"], oracle)

    def test_a_path_somebody_else_has_open_is_a_store_error_that_says_what_to_do(
        self, config: UnifiedEmbeddingConfig, tmp_path: Path
    ) -> None:
        theirs = QdrantClient(path=str(tmp_path / "q"))
        with pytest.raises(StoreError, match="url="):
            config.vector_store("docs", path=tmp_path / "q")
        theirs.close()
        assert config.vector_store("docs", path=tmp_path / "q").client.count("docs").count == 0

    def test_a_path_that_is_a_file_is_a_store_error(
        self, config: UnifiedEmbeddingConfig, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("no folder")
        with pytest.raises(StoreError, match="file"):
            config.vector_store("docs", path=tmp_path / "file")


# --- indexing -----------------------------------------------------------------------------------


class Rows:
    """Counts how often each text goes through the model."""

    def __init__(self, embedder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        run = embedder._run
        self.seen: list[str] = []

        def counted(texts: Sequence[str], *more: Any) -> Any:
            self.seen += texts
            return run(texts, *more)

        monkeypatch.setattr(embedder, "_run", counted)


class TestIndexing:
    def test_documents_in_and_out(
        self, config: UnifiedEmbeddingConfig, client: QdrantClient, oracle: TextEmbedder
    ) -> None:
        store = config.vector_store("docs", client=client)
        documents = [Document(text=text, id_=f"doc {i}") for i, text in enumerate(TEXTS[:4])]
        index = VectorStoreIndex.from_documents(
            documents,
            storage_context=StorageContext.from_defaults(vector_store=store),
            embed_model=config.text_model,
        )
        assert_holds(client, "docs", TEXTS[:4], oracle)
        index.insert(Document(text="band plays on", id_="doc 4"))
        assert_holds(client, "docs", [*TEXTS[:4], "band plays on"], oracle)
        index.delete_ref_doc("doc 1")
        index.delete_ref_doc("no such document")
        left = [TEXTS[0], TEXTS[2], TEXTS[3], "band plays on"]
        assert_holds(client, "docs", left, oracle)
        (best, *_) = config.retriever(store, similarity_top_k=4).retrieve("band plays on")
        assert best.node.ref_doc_id == "doc 4"

    async def test_documents_in_and_out_asynchronously_over_a_path(
        self, config: UnifiedEmbeddingConfig, oracle: TextEmbedder, tmp_path: Path
    ) -> None:
        store = config.vector_store("docs", path=tmp_path / "q")
        index = index_of(config, store)
        await index.ainsert_nodes([TextNode(text=text) for text in TEXTS])
        await index.ainsert(Document(text="band plays on", id_="doc 4"))
        assert_holds(store.client, "docs", [*TEXTS, "band plays on"], oracle)
        await index.adelete_ref_doc("doc 4")
        assert_holds(store.client, "docs", TEXTS, oracle)
        nodes = await index.as_retriever(similarity_top_k=1).aretrieve("Привет, мир!")
        assert [scored.text for scored in nodes] == ["Привет, мир!"]

    async def test_twenty_inserts_at_once_all_arrive(
        self, config: UnifiedEmbeddingConfig, oracle: TextEmbedder, tmp_path: Path
    ) -> None:
        store = config.vector_store("docs", path=tmp_path / "q")
        index = index_of(config, store)
        texts = [f"fox {i}" for i in range(20)]
        await asyncio.gather(*(index.ainsert_nodes([TextNode(text=text)]) for text in texts))
        assert_holds(store.client, "docs", texts, oracle)

    def test_use_async_stores_the_same(
        self, config: UnifiedEmbeddingConfig, client: QdrantClient, oracle: TextEmbedder
    ) -> None:
        VectorStoreIndex(
            [TextNode(text=text) for text in TEXTS[:4]],
            storage_context=StorageContext.from_defaults(
                vector_store=config.vector_store("docs", client=client)
            ),
            embed_model=config.text_model,
            use_async=True,
        )
        assert_holds(client, "docs", TEXTS[:4], oracle)

    @sync_and_async
    async def test_each_text_goes_through_the_model_once(
        self,
        config: UnifiedEmbeddingConfig,
        client: QdrantClient,
        monkeypatch: pytest.MonkeyPatch,
        is_async: bool,
    ) -> None:
        store = config.vector_store("docs", client=client)
        index = index_of(config, store)
        rows = Rows(config.embedder, monkeypatch)
        texts = [f"fox {i % 200} dog" for i in range(300)]  # 200 different ones
        await call(index, "insert_nodes", [TextNode(text=t) for t in texts], is_async=is_async)
        assert len(rows.seen) == len(set(rows.seen)) == 200
        assert config.embedder.stats().tokenised == 200
        assert client.count("docs").count == 300

    @pytest.mark.parametrize(
        "cache",
        [None, EmbeddingCache(max_entries=4), EmbeddingCache(max_bytes=2000)],
        ids=["none", "four entries", "2,000 bytes"],
    )
    def test_where_the_cache_cannot_hold_a_batch_it_is_slower_and_not_wrong(
        self,
        client: QdrantClient,
        oracle: TextEmbedder,
        cache: EmbeddingCache | None,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        config = fake_config(cache=cache)
        rows = Rows(config.embedder, monkeypatch)
        texts = [f"fox {i} dog" for i in range(70)]
        index_of(
            config,
            config.vector_store("docs", client=client),
            [TextNode(text=text) for text in texts],
        )
        assert_holds(client, "docs", texts, oracle)
        assert set(rows.seen) == set(texts)
        assert len(rows.seen) > 70

    def test_three_thousand_nodes_at_once_keep_both_vectors_each(
        self, config: UnifiedEmbeddingConfig, client: QdrantClient, oracle: TextEmbedder
    ) -> None:
        texts = [f"{i} fox" for i in range(3000)]  # LlamaIndex inserts 2,048 at a time
        index_of(
            config,
            config.vector_store("docs", client=client),
            [TextNode(text=text) for text in texts],
        )
        assert config.embedder.stats().tokenised == 3000
        points = {embedded_text(point): point for point in points_of(client, "docs")}
        assert set(points) == set(texts)
        for point in points.values():
            assert isinstance(point.vector, dict)
            assert len(point.vector["text-dense"]) == WIDTH  # type: ignore[arg-type]
            assert weights_of(point)
        sample = texts[::37] + texts[2046:2050]
        for text, dense, sparse in zip(
            sample, dense_of(oracle, sample), sparse_of(oracle, sample), strict=True
        ):
            vector = points[text].vector
            assert isinstance(vector, dict)
            assert vector["text-dense"] == close_to(dense.tolist())
            assert weights_of(points[text]) == close_to(sparse)

    def test_blank_nodes_survive(
        self, config: UnifiedEmbeddingConfig, client: QdrantClient, oracle: TextEmbedder
    ) -> None:
        store = config.vector_store("docs", client=client)
        blank: list[BaseNode] = [TextNode(text=""), TextNode(text=" \n"), Node()]
        index_of(config, store, [*blank, TextNode(text="quick fox")])
        index_of(config, store, [TextNode(text="")])  # a batch of nothing but blanks
        assert_holds(client, "docs", ["", " \n", "", "quick fox", ""], oracle)
        for options in ({}, {"rerank": "colbert"}, {"mode": "dense"}):
            found = config.retriever(store, **options).retrieve("quick fox")
            assert len(found) == 5

    def test_metadata_is_embedded_unless_excluded_and_both_vectors_see_the_same_text(
        self, config: UnifiedEmbeddingConfig, client: QdrantClient, oracle: TextEmbedder
    ) -> None:
        node = TextNode(
            text="quick fox",
            metadata={"title": "lazy dog", "path": "/tmp/x"},
            excluded_embed_metadata_keys=["path"],
        )
        index_of(config, config.vector_store("docs", client=client), [node])
        assert_holds(client, "docs", ["title: lazy dog\n\nquick fox"], oracle)

    def test_the_same_node_again_replaces_itself(
        self, config: UnifiedEmbeddingConfig, client: QdrantClient, oracle: TextEmbedder
    ) -> None:
        store = config.vector_store("docs", client=client)
        one = str(uuid.uuid4())
        for text in ("quick fox", "lazy dog"):
            index_of(config, store, [TextNode(text=text, id_=one)])
        assert_holds(client, "docs", ["lazy dog"], oracle)

    @sync_and_async
    async def test_an_id_qdrant_cannot_take_is_named(
        self, config: UnifiedEmbeddingConfig, client: QdrantClient, is_async: bool
    ) -> None:
        index = index_of(config, config.vector_store("docs", client=client))
        nodes = [TextNode(text="x", id_="my node")]
        with pytest.raises(InputError, match=r"item 0: .*my node.*UUID"):
            await call(index, "insert_nodes", nodes, is_async=is_async)
        assert client.count("docs").count == 0

    def test_the_stock_vector_store_reads_what_is_stored(
        self, config: UnifiedEmbeddingConfig, client: QdrantClient
    ) -> None:
        document = Document(text="quick fox", id_="doc 0", metadata={"page": 7, "tags": ["a"]})
        VectorStoreIndex.from_documents(
            [document, Document(text="lazy dog", id_="doc 1")],
            storage_context=StorageContext.from_defaults(
                vector_store=config.vector_store("docs", client=client)
            ),
            embed_model=config.text_model,
        )
        stock = QdrantVectorStore("docs", client=client)
        index = VectorStoreIndex.from_vector_store(stock, embed_model=config.text_model)
        query = "page: 7\ntags: ['a']\n\nquick fox"
        (best, _) = index.as_retriever(similarity_top_k=2).retrieve(query)
        assert best.text == "quick fox"
        assert best.metadata == {"page": 7, "tags": ["a"]}
        assert best.node.ref_doc_id == "doc 0"
        assert best.score == pytest.approx(1.0, abs=1e-5)
        assert {node.ref_doc_id for node in stock.get_nodes()} == {"doc 0", "doc 1"}
        index.delete_ref_doc("doc 0")
        assert client.count("docs").count == 1

    def test_llama_indexs_own_hybrid_and_sparse_modes_find_by_words(
        self, config: UnifiedEmbeddingConfig, client: QdrantClient, oracle: TextEmbedder
    ) -> None:
        texts = ["quick fox", "lazy dog", "two rankings"]
        store = config.vector_store("docs", client=client)
        index = index_of(config, store, [TextNode(text=text) for text in texts])
        found = index.as_retriever(vector_store_query_mode="sparse", sparse_top_k=3).retrieve(
            "lazy dog"
        )
        (query,) = sparse_of(oracle, ["lazy dog"])
        expected = {
            text: sum(query[token] * weights[token] for token in query.keys() & weights.keys())
            for text, weights in zip(texts, sparse_of(oracle, texts), strict=True)
            if query.keys() & weights.keys()
        }
        assert {scored.text: scored.score for scored in found} == pytest.approx(expected, abs=1e-4)
        (best, *_) = index.as_retriever(vector_store_query_mode="hybrid").retrieve("lazy dog")
        assert best.text == "lazy dog"


# --- LlamaIndex's pipelines ---------------------------------------------------------------------


class TestIngestionPipeline:
    @sync_and_async
    async def test_fills_the_store(
        self,
        config: UnifiedEmbeddingConfig,
        client: QdrantClient,
        oracle: TextEmbedder,
        monkeypatch: pytest.MonkeyPatch,
        is_async: bool,
    ) -> None:
        rows = Rows(config.embedder, monkeypatch)
        pipeline = IngestionPipeline(
            transformations=[SentenceSplitter(chunk_size=24, chunk_overlap=0), config.text_model],
            vector_store=config.vector_store("docs", client=client),
        )
        documents = [Document(text=" ".join(TEXTS[:3])), Document(text="band plays on")]
        run = pipeline.arun(documents=documents) if is_async else None
        nodes = await run if run is not None else pipeline.run(documents=documents)
        assert len(nodes) > 2  # the first document is longer than a chunk
        assert_holds(client, "docs", [node.get_content() for node in nodes], oracle)
        assert len(rows.seen) == len(nodes)

    @sync_and_async
    async def test_upserts_replace_a_changed_document(
        self,
        config: UnifiedEmbeddingConfig,
        client: QdrantClient,
        oracle: TextEmbedder,
        is_async: bool,
    ) -> None:
        pipeline = IngestionPipeline(
            transformations=[SentenceSplitter(), config.text_model],
            vector_store=config.vector_store("docs", client=client),
            docstore=SimpleDocumentStore(),
            docstore_strategy=DocstoreStrategy.UPSERTS,
        )
        for first in ("quick fox", "quick brown fox", "quick brown fox"):
            documents = [Document(text=first, id_="a"), Document(text="lazy dog", id_="b")]
            if is_async:
                await pipeline.arun(documents=documents)
            else:
                pipeline.run(documents=documents)
        assert_holds(client, "docs", ["quick brown fox", "lazy dog"], oracle)

    def test_its_cache_tells_models_and_options_apart(self, config: UnifiedEmbeddingConfig) -> None:
        short = fake_config(max_length=4)
        text = "quick brown fox jumps"
        (long_node,) = IngestionPipeline(transformations=[config.text_model]).run(
            nodes=[TextNode(text=text)]
        )
        pipeline = IngestionPipeline(transformations=[config.text_model])
        pipeline.run(nodes=[TextNode(text=text)])
        pipeline.transformations = [short.text_model]
        (short_node,) = pipeline.run(nodes=[TextNode(text=text)])
        assert long_node.embedding is not None
        assert short_node.embedding is not None
        assert not np.allclose(long_node.embedding, short_node.embedding, atol=1e-3)


class TestSemanticSplitter:
    def test_splits_where_neighbours_differ_most(
        self, config: UnifiedEmbeddingConfig, oracle: TextEmbedder
    ) -> None:
        sentences = [
            "quick fox. ", "quick brown fox. ", "two rankings. ", "two rankings merges. ",
            "lazy dog. ", "the lazy dog plays. ",
        ]  # fmt: skip
        splitter = SemanticSplitterNodeParser(
            embed_model=config.text_model,
            buffer_size=0,
            breakpoint_percentile_threshold=60,
            sentence_splitter=lambda text: re.findall(r".*?\. ", text),
        )
        nodes = splitter.get_nodes_from_documents([Document(text="".join(sentences))])
        rows = dense_of(oracle, sentences).astype(np.float64)
        distances = 1 - (rows[:-1] * rows[1:]).sum(axis=1)
        cuts = [i + 1 for i in np.flatnonzero(distances > np.percentile(distances, 60))]
        assert len(cuts) == 2
        ends = [*cuts, len(sentences)]
        expected = ["".join(sentences[a:b]) for a, b in zip([0, *cuts], ends, strict=True)]
        assert [node.get_content().strip() for node in nodes] == [e.strip() for e in expected]


class _FirstTwoWords(TransformComponent):
    """A graph without a language model: a text's first word relates to its second."""

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        for node in nodes:
            one, two = (
                EntityNode(name=word, label="WORD") for word in node.get_content().split()[:2]
            )
            node.metadata[KG_NODES_KEY] = [*node.metadata.get(KG_NODES_KEY, []), one, two]
            node.metadata[KG_RELATIONS_KEY] = [
                *node.metadata.get(KG_RELATIONS_KEY, []),
                Relation(label="BEFORE", source_id=one.id, target_id=two.id),
            ]
        return nodes


class TestPropertyGraph:
    @pytest.mark.parametrize("use_async", [False, True])
    def test_implicit_paths_become_relations(
        self, config: UnifiedEmbeddingConfig, client: QdrantClient, use_async: bool
    ) -> None:
        graph = SimplePropertyGraphStore()
        PropertyGraphIndex.from_documents(
            [Document(text="quick fox", id_="doc 0"), Document(text="lazy dog", id_="doc 1")],
            kg_extractors=[ImplicitPathExtractor()],
            property_graph_store=graph,
            vector_store=config.vector_store("graph", client=client),
            embed_model=config.text_model,
            llm=MockLLM(),
            use_async=use_async,
        )
        relations = graph.graph.relations.values()
        assert {(relation.label, relation.target_id) for relation in relations} == {
            ("SOURCE", "doc 0"),
            ("SOURCE", "doc 1"),
        }

    async def test_the_vector_context_retriever_finds_triplets_through_our_store(
        self, config: UnifiedEmbeddingConfig, client: QdrantClient, oracle: TextEmbedder
    ) -> None:
        store = config.vector_store("graph", client=client)
        index = PropertyGraphIndex(
            nodes=[
                TextNode(text=text, id_=str(uuid.UUID(int=i)))
                for i, text in enumerate(("quick fox", "lazy dog", "two rankings"))
            ],
            kg_extractors=[ImplicitPathExtractor(), _FirstTwoWords()],
            property_graph_store=SimplePropertyGraphStore(),
            vector_store=store,
            embed_model=config.text_model,
            llm=MockLLM(),
            use_async=False,
        )
        points = points_of(client, "graph")
        sources = [(point.payload or {})["vector_source_id"] for point in points]
        assert sorted(sources) == ["dog", "fox", "lazy", "quick", "rankings", "two"]
        # LlamaIndex embeds an entity's properties too, among them an id, so words alone do not
        # tell which entity is nearest.
        texts = [metadata_dict_to_node(point.payload or {}).get_content() for point in points]
        nearest = sources[int(np.argmax(dense_of(oracle, texts) @ dense_of(oracle, ["dog"])[0]))]
        triplets = ["quick -> BEFORE -> fox", "lazy -> BEFORE -> dog", "two -> BEFORE -> rankings"]
        expected = [triplet for triplet in triplets if nearest in triplet.split()]
        retriever = VectorContextRetriever(
            index.property_graph_store,
            vector_store=store,
            embed_model=config.text_model,
            similarity_top_k=1,
            include_text=False,
        )
        assert [scored.text for scored in retriever.retrieve("dog")] == expected
        assert [scored.text for scored in await retriever.aretrieve("dog")] == expected


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_a_cleared_store_is_made_anew_with_its_fingerprint(
    config: UnifiedEmbeddingConfig, client: QdrantClient, is_async: bool
) -> None:
    store = config.vector_store("docs", client=client)
    before = client.get_collection("docs").config.metadata
    node = TextNode(text="fox", embedding=config.text_model.get_text_embedding("fox"))
    store.clear()
    if is_async:
        await store.async_add([node])
    else:
        store.add([node])
    assert client.get_collection("docs").config.metadata == before
    assert before
    assert len(config.retriever(store).retrieve("fox")) == 1


async def test_a_bad_text_far_into_a_batch_is_named_by_its_own_index(
    config: UnifiedEmbeddingConfig,
) -> None:
    texts: list[Any] = ["fox"] * 200 + [None]
    with pytest.raises(InputError) as caught:
        config.text_model.get_text_embedding_batch(texts)
    assert caught.value.index == 200
    with pytest.raises(InputError) as caught:
        await config.text_model.aget_text_embedding_batch(texts)
    assert caught.value.index == 200


def test_a_pickled_config_gives_the_same_vectors(real_config: UnifiedEmbeddingConfig) -> None:
    copy = pickle.loads(pickle.dumps(real_config))
    assert copy.embedder.options == real_config.embedder.options
    ours, theirs = (one.embedder.encode_query("fox").dense for one in (real_config, copy))
    assert ours.tolist() == theirs.tolist()
