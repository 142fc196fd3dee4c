"""LlamaIndex's QdrantVectorStore, built so that its sparse vectors are this package's.

What lives here: opening the place asked for, and the store over it. What does not: the collection's
layout and fingerprint (`stores.schema`), and searching both vectors at once (`retrievers`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import AsyncQdrantClient, QdrantClient

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import FingerprintMismatchError, InputError
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client, async_view, make_thread_safe, open_folder
from unified_embeddings.stores.schema import DENSE_VECTOR, SPARSE_VECTOR, ensure_collection
from unified_embeddings.types import Role

SparseLists = tuple[list[list[int]], list[list[float]]]
"""Of n texts: a list of vocabulary ids and a list of their weights for each."""


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
    """Return a QdrantVectorStore for an embedder's vectors.

    The collection is created if it does not exist. Exactly one of `url`, `path` and `client` says
    where it is.

    Args:
        embedder: The embedder whose dense and sparse vectors the store holds.
        collection: The collection's name.
        url: A server's address.
        path: A folder to run Qdrant's core over, in this process (see `EdgeQdrantClient`). The
            folder is shared within the process and locked against others.
        client: A client of your own, a QdrantClient or an EdgeQdrantClient. One in local mode is
            made thread-safe.
        aclient: The async client to use along with `client`. For `url`, and if Qdrant runs in this
            process, it is made here.
        api_key: For `url`.
        **collection_options: Passed to Qdrant's `create_collection`: hnsw_config,
            quantization_config, ...; for a server or a cluster also shard_number,
            replication_factor and write_consistency_factor.

    Raises:
        InputError: If not exactly one of url, path and client is given, the name is blank, or the
            embedder gives no dense vectors.
        FingerprintMismatchError: If the collection holds another model's vectors.
        StoreError: If Qdrant cannot be reached or rejects the collection.
    """
    _check_place(url, path, client)
    _check_collection(collection, embedder)
    # Resolves the model's files, so that a model that is missing leaves no folder behind.
    _ = embedder.fingerprint
    client, aclient = _open_clients(
        collection, url=url, path=path, client=client, aclient=aclient, api_key=api_key
    )
    ensure = partial(ensure_collection, client, collection, embedder, **collection_options)
    ensure()
    with store_errors(collection, "opening"):
        return FingerprintedStore(
            embedder,
            ensure,
            collection_name=collection,
            client=client,  # an EdgeQdrantClient has the methods that the stock store calls
            aclient=aclient,
            dense_vector_name=DENSE_VECTOR,
            **_sparse_options(embedder),
        )


def _check_place(
    url: str | None, path: str | os.PathLike[str] | None, client: Client | None
) -> None:
    """Reject anything but one place to open."""
    places = [place for place in (url, path, client) if place is not None]
    if len(places) != 1:
        raise InputError("give exactly one of url=, path= and client=")
    if isinstance(client, AsyncQdrantClient):
        raise InputError("client= takes a QdrantClient; give an AsyncQdrantClient as aclient= too")
    if path == ":memory:":
        raise InputError('path= takes a folder; for memory give client=QdrantClient(":memory:")')


def _check_collection(collection: str, embedder: TextEmbedder) -> None:
    """Reject a blank name, and an embedder without the vectors that every collection has."""
    if not isinstance(collection, str) or not collection.strip():
        raise InputError(f"a collection needs a name, got {collection!r}")
    if "dense" not in embedder.heads:
        raise InputError(
            f"{embedder.model_name!r} gives no dense vectors, which a collection needs; set it as "
            "the sparse_model of a dense one"
        )


def _open_clients(
    collection: str,
    *,
    url: str | None,
    path: str | os.PathLike[str] | None,
    client: Client | None,
    aclient: AsyncQdrantClient | None,
    api_key: str | None,
) -> tuple[Client, AsyncQdrantClient | None]:
    """Return the sync and the async client of the one place that is given.

    The async one is None for a server's client that was given without its async counterpart.
    """
    if path is not None:
        client = open_folder(path)
    elif url is not None:
        with store_errors(collection, f"connecting to {url}"):
            # The version check at construction only warns about a server that cannot be reached.
            # The first call to it raises.
            client = QdrantClient(url=url, api_key=api_key, check_compatibility=False)
            aclient = aclient or AsyncQdrantClient(
                url=url, api_key=api_key, check_compatibility=False
            )
    assert client is not None
    make_thread_safe(client)
    return client, aclient or async_view(client)


def _sparse_options(embedder: TextEmbedder) -> dict[str, object]:
    """Return the stock store's options for its sparse half; none without sparse vectors."""
    if "sparse" not in embedder.heads:
        return {}
    return {
        "enable_hybrid": True,
        "sparse_doc_fn": _SparseFunction(embedder, "document"),
        "sparse_query_fn": _SparseFunction(embedder, "query"),
        "sparse_vector_name": SPARSE_VECTOR,
    }


class FingerprintedStore(QdrantVectorStore):
    """A QdrantVectorStore whose collection keeps its fingerprint, even when it is created again.

    After `clear()` the stock store creates the collection by itself, without our metadata. Errors
    while nodes are added are StoreErrors, whichever client raised them.

    Args:
        embedder: The embedder that the collection was opened for.
        make_collection: Creates the collection, or checks the one that exists.
        **options: The stock store's own.
    """

    _embedder: TextEmbedder = PrivateAttr()
    _make_collection: Callable[[], None] = PrivateAttr()

    def __init__(
        self, embedder: TextEmbedder, make_collection: Callable[[], None], **options: Any
    ) -> None:
        super().__init__(**options)
        self._embedder = embedder
        self._make_collection = make_collection

    def check_model(self, fingerprint: str, model_name: str) -> None:
        """Reject another model than the one that the collection was opened for.

        Args:
            fingerprint: The fingerprint of the model that is about to write or search.
            model_name: Its name, for the message.

        Raises:
            FingerprintMismatchError: If the fingerprints differ.
        """
        if fingerprint != self._embedder.fingerprint:
            raise FingerprintMismatchError(
                self.collection_name,
                expected=fingerprint,
                found=self._embedder.fingerprint,
                model=model_name,
                found_model=self._embedder.model_name,
            )

    def add(
        self, nodes: Sequence[BaseNode], shard_identifier: object = None, **kwargs: Any
    ) -> list[str]:
        """Store nodes that have embeddings, and return their ids.

        Raises:
            StoreError: If Qdrant rejects them.
        """
        with store_errors(self.collection_name, "adding nodes"):
            return list(super().add(list(nodes), shard_identifier=shard_identifier, **kwargs))

    async def async_add(
        self, nodes: Sequence[BaseNode], shard_identifier: object = None, **kwargs: Any
    ) -> list[str]:
        """Like `add`, but without blocking the event loop."""
        with store_errors(self.collection_name, "adding nodes"):
            return list(
                await super().async_add(list(nodes), shard_identifier=shard_identifier, **kwargs)
            )

    def _create_collection(self, collection_name: str, vector_size: int) -> None:  # noqa: ARG002
        self._make_collection()
        self._collection_initialized = True

    async def _acreate_collection(self, collection_name: str, vector_size: int) -> None:
        await asyncio.to_thread(self._create_collection, collection_name, vector_size)


class _SparseFunction:
    """Sparse vectors of texts in the form in which QdrantVectorStore asks for them.

    After an insert through our text embedding the vectors are in the cache, and this is a look-up.
    If the cache could not hold the batch, the texts run through the model again.

    Args:
        embedder: Gives sparse vectors.
        role: Whether the texts are documents or queries.
    """

    def __init__(self, embedder: TextEmbedder, role: Role) -> None:
        self._embedder = embedder
        self._role = role

    def __call__(self, texts: list[str]) -> SparseLists:
        encode = self._embedder.encode_documents
        if self._role == "query":
            encode = self._embedder.encode_queries
        vectors = encode(texts, dense=False, sparse=True).sparse or []
        indices: list[list[int]] = [vector.indices.tolist() for vector in vectors]
        weights: list[list[float]] = [vector.values.tolist() for vector in vectors]
        return indices, weights
