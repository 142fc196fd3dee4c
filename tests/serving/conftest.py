"""One service for all tests that only ask it something, and the embedder it is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from llama_index.core import Document, VectorStoreIndex

from running_service import RunningService
from unified_embeddings import ModelEmbedder, UnifiedEmbeddingConfig

PASSAGES = ("Foxes jump over dogs.", "Dogs sleep at noon.", "The sea is blue.")


@pytest.fixture(scope="session")
def service() -> Iterator[RunningService]:
    """The service as it is started without settings, over mini-m3."""
    with RunningService(served_names=("ada",)) as running:
        yield running


@pytest.fixture(scope="session")
def guarded_service() -> Iterator[RunningService]:
    """A service with two API keys, and small limits."""
    with RunningService(
        api_keys=("first-key", "second-key"),
        max_texts=8,
        max_request_tokens=600,
        max_body_bytes=20_000,
        auto_truncate=False,
    ) as running:
        yield running


@pytest.fixture(scope="session")
def embedder() -> ModelEmbedder:
    """The same model in this process, without a cache: what the service's answers must equal."""
    return ModelEmbedder("mini-m3", precision="fp32", device="cpu", cache=None)


@pytest.fixture(scope="session")
def http(service: RunningService) -> Iterator[httpx.Client]:
    """A client of the service."""
    with httpx.Client(base_url=service.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def full_service(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Iterator[RunningService]:
    """A service with a collection of three passages, and with images (a tiny random CLIP)."""
    folder = tmp_path_factory.mktemp("serving") / "qdrant_data"
    config = UnifiedEmbeddingConfig("mini-m3", precision="fp32", device="cpu")
    store = config.vector_store("animals", path=str(folder))
    index = VectorStoreIndex.from_vector_store(store, embed_model=config.text_model)
    for number, text in enumerate(PASSAGES):
        index.insert(Document(text=text, metadata={"number": number}))
    store.client.close()
    served = UnifiedEmbeddingConfig("mini-m3", clip, precision="fp32", device="cpu")
    with RunningService(served, path=str(folder), collection="animals", images=True) as running:
        yield running
