"""LlamaIndex's stock QdrantVectorStore, built so that its sparse half is ours."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import AsyncQdrantClient, QdrantClient

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import FingerprintMismatchError, InputError
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client, async_view, make_thread_safe, open_folder
from unified_embeddings.stores.schema import DENSE_VECTOR, SPARSE_VECTOR, ensure_collection
from unified_embeddings.types import Role

SparseLists = tuple[list[list[int]], list[list[float]]]


def build_vector_store(
    embedder: TextEmbedder,
    collection: str,
    *,
    url: str | None = None,
    path: str | os.PathLike[str] | None = None,
    client: Client | None = None,
    aclient: AsyncQdrantClient | None = None,
    api_key: str | None = None,
    **collection_options: Any,
) -> QdrantVectorStore:
    """A QdrantVectorStore for this embedder's vectors; the collection is made if it is not there.

    Args:
        embedder: Whose dense and sparse vectors it holds.
        collection: The collection's name.
        url: A server's address.
        path: A folder to run Qdrant's core over, in this process (see `EdgeQdrantClient`); shared
            within it, closed to others.
        client: A client of your own, a QdrantClient or an EdgeQdrantClient; one in local mode is
            made thread-safe. Exactly one of the three.
        aclient: The async client beside `client`; made here for `url` and where Qdrant runs in this
            process.
        api_key: For `url`.
        **collection_options: Passed to Qdrant's `create_collection`: hnsw_config,
            quantization_config, ...; for a server or a cluster also shard_number,
            replication_factor and write_consistency_factor.

    Raises:
        InputError: If not exactly one of url, path and client is given, or the name is blank.
        FingerprintMismatchError: If the collection holds another model's vectors.
        StoreError: If Qdrant cannot be reached or refuses.
    """
    if sum(place is not None for place in (url, path, client)) != 1:
        raise InputError("give exactly one of url=, path= and client=")
    if not isinstance(collection, str) or not collection.strip():
        raise InputError(f"a collection needs a name, got {collection!r}")
    if isinstance(client, AsyncQdrantClient):
        raise InputError("client= takes a QdrantClient; give an AsyncQdrantClient as aclient= too")
    if "dense" not in embedder.heads:
        raise InputError(
            f"{embedder.model_name!r} gives no dense vectors, which a collection needs; set it as "
            "the sparse_model beside a dense one"
        )
    if path == ":memory:":
        raise InputError('path= takes a folder; for memory give client=QdrantClient(":memory:")')
    _ = embedder.fingerprint  # a model that cannot be had leaves no folder behind
    if path is not None:
        client = open_folder(path)
    elif url is not None:
        with store_errors(collection, f"connecting to {url}"):
            # Without the check at construction, which warns where the first call will raise.
            options: dict[str, Any] = {"api_key": api_key, "check_compatibility": False}
            client = QdrantClient(url=url, **options)
            aclient = aclient or AsyncQdrantClient(url=url, **options)
    assert client is not None
    make_thread_safe(client)
    aclient = aclient or async_view(client)
    ensure_collection(client, collection, embedder, **collection_options)
    hybrid: dict[str, Any] = {}
    if "sparse" in embedder.heads:
        hybrid = {
            "enable_hybrid": True,
            "sparse_doc_fn": _SparseFunction(embedder, "document"),
            "sparse_query_fn": _SparseFunction(embedder, "query"),
            "sparse_vector_name": SPARSE_VECTOR,
        }
    with store_errors(collection, "opening"):
        return FingerprintedStore(
            embedder,
            partial(ensure_collection, client, collection, embedder, **collection_options),
            collection_name=collection,
            client=client,  # an EdgeQdrantClient has the methods that the stock store calls
            aclient=aclient,
            dense_vector_name=DENSE_VECTOR,
            **hybrid,
        )


class FingerprintedStore(QdrantVectorStore):
    """The stock store, whose collection carries its fingerprint also when made anew.

    After `clear()` the stock one makes the collection again by itself, without our metadata. What
    goes wrong when nodes are added is a StoreError, whichever client raised it.
    """

    _embedder: TextEmbedder = PrivateAttr()
    _make: Callable[[], None] = PrivateAttr()

    def __init__(self, embedder: TextEmbedder, make: Callable[[], None], **options: Any) -> None:
        super().__init__(**options)
        self._embedder = embedder
        self._make = make

    def check(self, fingerprint: str, model: str) -> None:
        """Refuse another model than the one the collection was opened for.

        Raises:
            FingerprintMismatchError: If the fingerprint is another.
        """
        if fingerprint != self._embedder.fingerprint:
            raise FingerprintMismatchError(
                self.collection_name,
                expected=fingerprint,
                found=self._embedder.fingerprint,
                model=model,
                found_model=self._embedder.model_name,
            )

    def add(self, *args: Any, **kwargs: Any) -> list[str]:
        """Store nodes; whatever Qdrant refuses is a StoreError."""
        with store_errors(self.collection_name, "adding nodes"):
            return list(super().add(*args, **kwargs))

    async def async_add(self, *args: Any, **kwargs: Any) -> list[str]:
        """As `add`, without blocking the event loop."""
        with store_errors(self.collection_name, "adding nodes"):
            return list(await super().async_add(*args, **kwargs))

    def _create_collection(self, collection_name: str, vector_size: int) -> None:  # noqa: ARG002
        self._make()
        self._collection_initialized = True

    async def _acreate_collection(self, collection_name: str, vector_size: int) -> None:
        await asyncio.to_thread(self._create_collection, collection_name, vector_size)


class _SparseFunction:
    """What QdrantVectorStore calls for the sparse half: texts → (indices, values), a list each.

    After an insert through our text embedding the vectors are in the cache, and this is a lookup;
    where the cache could not hold the batch, the texts are run again.
    """

    def __init__(self, embedder: TextEmbedder, role: Role) -> None:
        self._encode = embedder.encode_queries if role == "query" else embedder.encode_documents

    def __call__(self, texts: list[str]) -> SparseLists:
        vectors = self._encode(texts, dense=False, sparse=True).sparse or []
        return [v.indices.tolist() for v in vectors], [v.values.tolist() for v in vectors]
