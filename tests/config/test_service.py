"""A pipeline whose text model is in a service: what it takes, what it refuses, what works."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.schema import TextNode
from qdrant_client import QdrantClient

from embedding_service import Service, running
from unified_embeddings import (
    FingerprintMismatchError,
    InputError,
    ModelLoadError,
    ServiceError,
    UnifiedSentenceSplitter,
)
from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
from unified_embeddings.embedders import remote_transport
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.llama.vector_store import build_vector_store

KEY = "s3cret-key"
TEXTS = ["Foxes jump over lazy dogs.", "The sea is calm tonight.", "Dogs sleep."]


@pytest.fixture(scope="module")
def shared_service() -> Iterator[Service]:
    with running(FakeEmbedder()) as running_service:
        yield running_service


@pytest.fixture
def service(shared_service: Service) -> Service:
    shared_service.reset(FakeEmbedder(32))
    return shared_service


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    before = dict(vars(Settings))
    yield
    vars(Settings).clear()
    vars(Settings).update(before)


class TestPipeline:
    def test_needs_no_model_of_its_own(self, service: Service) -> None:
        config = UnifiedEmbeddingConfig(url=service.url)
        assert service.asked == []
        store = config.vector_store("notes", client=QdrantClient(":memory:"))
        nodes = [TextNode(text=text, id_=str(i)) for i, text in enumerate(TEXTS)]
        dense = config.text_model.get_text_embedding_batch(TEXTS)
        for node, vector in zip(nodes, dense, strict=True):
            node.embedding = vector
        store.add(nodes)
        retriever = config.retriever(store, similarity_top_k=2)
        found = retriever.retrieve("Which foxes jump?")
        assert found[0].node.get_content() == TEXTS[0]
        again = asyncio.run(retriever.aretrieve("Which foxes jump?"))
        assert [node.score for node in again] == [node.score for node in found]
        reranking = config.retriever(store, rerank="colbert")
        assert reranking.retrieve("Do dogs sleep?")[0].node.get_content() == TEXTS[2]
        sent = [body["texts"] for body in service.bodies("/v1/m3") if "sparse" in body["heads"]]
        assert sorted(map(len, sent)) == [1, 1, 3]  # dense and sparse of a text come together

    def test_its_collections_are_those_of_the_model_itself(self, service: Service) -> None:
        client = QdrantClient(":memory:")
        UnifiedEmbeddingConfig(url=service.url).vector_store("notes", client=client)
        build_vector_store(service.embedder, "notes", client=client)
        service.embedder = FakeEmbedder(32, model_name="other")
        with pytest.raises(FingerprintMismatchError, match="made with 'fake'"):
            UnifiedEmbeddingConfig(url=service.url).vector_store("notes", client=client)

    def test_settings(self, service: Service) -> None:
        config = UnifiedEmbeddingConfig(url=service.url, image_model=None)
        config.configure_settings()
        expected = service.embedder.encode_query("fox").dense
        assert expected is not None
        assert Settings.embed_model.get_query_embedding("fox") == expected[0].tolist()
        assert isinstance(Settings.node_parser, UnifiedSentenceSplitter)
        assert Settings.node_parser.embedder is config.embedder
        assert Settings.node_parser.chunk_size == 510

    def test_images_stay_here(self, service: Service, clip: Path) -> None:
        config = UnifiedEmbeddingConfig(url=service.url, image_model=clip)
        assert config.clip.dimension == 24
        assert service.asked == []
        config.configure_settings()
        assert Settings.image_embed_model is config.image_model  # type: ignore[attr-defined]

    def test_memory_is_that_of_this_process(self, service: Service) -> None:
        config = UnifiedEmbeddingConfig(url=service.url)
        config.embedder.encode_query("fox")
        assert config.memory().models == ()

    def test_a_service_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(remote_transport, "_FIRST_WAIT", 0.001)
        config = UnifiedEmbeddingConfig(url="http://127.0.0.1:1")
        for use in (lambda: config.text_model, lambda: config.embedder.dimension):
            with pytest.raises(ServiceError, match="GET /info failed"):
                use()


class TestModel:
    def test_is_the_services(self, service: Service) -> None:
        assert UnifiedEmbeddingConfig(url=service.url).model_choice == "fake"

    def test_another_that_is_named_is_refused_when_the_service_is_asked(
        self, service: Service
    ) -> None:
        config = UnifiedEmbeddingConfig("bge-m3", url=service.url)
        assert config.model_choice == "bge-m3"
        with pytest.raises(ModelLoadError, match=r"'bge-m3'.* has 'fake'"):
            config.embedder.encode_query("fox")
        assert UnifiedEmbeddingConfig("fake", url=service.url).embedder.dimension == 32

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("sparse_model", "Splade_PP_en_v1"), ("engine", "onnx"), ("precision", "fp16"),
            ("device", "cuda:0"), ("max_length", 512), ("batch_tokens", 1), ("revision", "main"),
        ],
    )  # fmt: skip
    def test_options_of_a_model_in_this_process_are_refused(self, option: str, value: Any) -> None:
        with pytest.raises(InputError, match=f"{option}={value!r} is the service's to decide"):
            UnifiedEmbeddingConfig(url="http://127.0.0.1:1", **{option: value})

    def test_a_key_without_an_address(self) -> None:
        with pytest.raises(InputError, match="give url too") as raised:
            UnifiedEmbeddingConfig(api_key=KEY)
        assert KEY not in str(raised.value)


class TestKey:
    def test_is_sent_and_shown_nowhere(self, service: Service) -> None:
        service.api_key = KEY
        config = UnifiedEmbeddingConfig(url=service.url, api_key=KEY)
        assert config.embedder.dimension == 32
        shown = [repr(config), repr(config._options), str(config.text_model.to_dict())]
        assert all(KEY not in text for text in shown)
        assert shown[0] == f"UnifiedEmbeddingConfig(url={service.url!r})"

    def test_is_in_a_pickle(self, service: Service) -> None:
        service.api_key = KEY
        config = UnifiedEmbeddingConfig(url=service.url, api_key=KEY)
        for again in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config)):
            assert again.embedder.dimension == 32


class TestEnvironment:
    def test_address_and_key(self, service: Service) -> None:
        service.api_key = KEY
        environ = {"UNIFIED_EMBEDDINGS_URL": service.url, "UNIFIED_EMBEDDINGS_API_KEY": KEY}
        config = UnifiedEmbeddingConfig.from_env(environ)
        assert config.url == service.url
        assert config.embedder.model_name == "fake"
        with pytest.raises(ModelLoadError, match="'arctic'"):
            UnifiedEmbeddingConfig.from_env(environ, model_choice="arctic").embedder.dimension  # noqa: B018

    def test_a_key_alone_is_another_programs(self) -> None:
        environ = {"UNIFIED_EMBEDDINGS_MODEL": "mini-m3", "UNIFIED_EMBEDDINGS_API_KEY": KEY}
        config = UnifiedEmbeddingConfig.from_env(environ)
        assert config.url is None
        assert config.model_choice == "mini-m3"

    def test_an_argument_wins(self, service: Service) -> None:
        environ = {"UNIFIED_EMBEDDINGS_URL": "http://127.0.0.1:1"}
        assert UnifiedEmbeddingConfig.from_env(environ, url=service.url).url == service.url

    def test_what_does_not_go_with_it_is_named(self) -> None:
        environ = {"UNIFIED_EMBEDDINGS_URL": "http://127.0.0.1:1", "QUANTIZATION": "int8"}
        with pytest.raises(InputError, match="precision='int8' is the service's to decide"):
            UnifiedEmbeddingConfig.from_env(environ)
