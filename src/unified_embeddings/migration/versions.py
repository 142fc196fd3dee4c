"""A collection and the model that made it, as one record; and a store to read such a collection.

What lives here: from the name that an application opens to the collection behind it and its model.
What does not: asking it (`versioned_retriever`), and switching the name (`cutover`).

An alias says nothing about a model, and it may be switched between embedding a question and
searching for it. So a version names the collection itself. Its model never changes: a migration
makes a new collection for a new model, under a name that was never in use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.vector_stores.types import VectorStoreQueryResult
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import StoreError
from unified_embeddings.llama.fields import LLAMA_INDEX_FIELDS, Fields
from unified_embeddings.llama.layouts import PayloadReader, UnreadablePoint
from unified_embeddings.stores.aliases import resolve_name
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client, async_view
from unified_embeddings.stores.schema import (
    DENSE_VECTOR,
    SPARSE_VECTOR,
    dense_vectors,
    recorded_model,
)


@dataclass(frozen=True)
class IndexVersion:
    """A collection and the model whose vectors it holds.

    Attributes:
        collection: The collection's own name, never an alias.
        fingerprint: The model's fingerprint.
        model_name: The model's name, for messages.
    """

    collection: str
    fingerprint: str
    model_name: str


def read_version(
    client: Client, name: str, *, known: Mapping[str, TextEmbedder] | None = None
) -> IndexVersion:
    """Return the version that a name stands for now.

    Args:
        client: Of the place.
        name: An alias, or a collection's own name.
        known: Own name → the embedder that made it, for collections that do not record their model
            (those of other software).

    Raises:
        StoreError: If there is no such collection, it does not record its model and `known` does
            not name it, or Qdrant fails.

    Example:
        >>> from qdrant_client import QdrantClient
        >>> from unified_embeddings.embedders.fake import FakeEmbedder
        >>> from unified_embeddings.llama.vector_store import build_vector_store
        >>> from unified_embeddings.migration.versions import read_version
        >>> client = QdrantClient(":memory:")
        >>> _ = build_vector_store(FakeEmbedder(), "docs-1", client=client)
        >>> version = read_version(client, "docs-1")
        >>> version.collection, version.model_name
        ('docs-1', 'fake')
    """
    collection = resolve_name(client, name)
    with store_errors(name, "reading the collection's settings"):
        info = client.get_collection(collection)
    return version_of(collection, info, known or {})


def version_of(
    collection: str, info: qm.CollectionInfo, known: Mapping[str, TextEmbedder]
) -> IndexVersion:
    """Return the version of a collection whose settings were read; see `read_version`.

    What the collection itself records wins over `known`.

    Raises:
        StoreError: If nothing says which model made it.
    """
    recorded = recorded_model(info)
    if recorded is not None:
        return IndexVersion(collection, recorded.fingerprint, recorded.name)
    if collection in known:
        embedder = known[collection]
        return IndexVersion(collection, embedder.fingerprint, embedder.model_name)
    raise StoreError(
        collection,
        "finding its model",
        "it does not record which model made it. Let `unified-embeddings adopt` prove and record "
        f"it, or name the embedder that you know made it: known={{{collection!r}: embedder}}",
    )


def choose_embedder(version: IndexVersion, embedders: Sequence[TextEmbedder]) -> TextEmbedder:
    """Return the embedder of a version's model.

    Raises:
        StoreError: If none of them is.
    """
    for embedder in embedders:
        if version.fingerprint in (embedder.fingerprint, *embedder.former_fingerprints):
            return embedder
    given = ", ".join(f"{item.model_name!r} ({item.fingerprint})" for item in embedders) or "none"
    raise StoreError(
        version.collection,
        "choosing its model",
        f"it was made with {version.model_name!r} ({version.fingerprint}), and the embedders given "
        f"are {given}; give that model's too",
    )


class ReadingStore(QdrantVectorStore):
    """A QdrantVectorStore to read one collection that exists; it never creates one.

    `UnifiedEmbeddingConfig.vector_store` creates what is missing. Here the collection may have been
    deleted a moment ago, and is not to come back empty.

    Args:
        client: Sync client.
        collection: The collection's own name.
        info: What Qdrant reports about it.
        reader: Reads payloads of other software; None reads LlamaIndex's.
    """

    _reader: PayloadReader | None = PrivateAttr()

    def __init__(
        self,
        client: Client,
        collection: str,
        info: qm.CollectionInfo,
        reader: PayloadReader | None = None,
    ) -> None:
        super().__init__(
            collection_name=collection,
            client=cast("QdrantClient", client),  # an EdgeQdrantClient has the methods called
            aclient=async_view(client),
            dense_vector_name=_choose_dense_name(info),
            # Under other names, other software keeps the vectors of other models.
            sparse_vector_name=SPARSE_VECTOR,
        )
        self._reader = reader

    @property
    def fields(self) -> Fields:
        """Where the payloads have the metadata, for filters."""
        return LLAMA_INDEX_FIELDS if self._reader is None else self._reader.fields

    def parse_to_query_result(self, response: list[Any]) -> VectorStoreQueryResult:
        """Return the points as nodes, whatever software wrote their payloads.

        Raises:
            StoreError: If a point has no text.
        """
        if self._reader is None:
            return super().parse_to_query_result(response)
        nodes = []
        for point in response:
            content = self._reader.read(point.id, point.payload)
            if isinstance(content, UnreadablePoint):
                raise StoreError(self.collection_name, f"reading point {point.id}", content.problem)
            nodes.append(content.node)
        return VectorStoreQueryResult(
            nodes=nodes,
            similarities=[getattr(point, "score", 1.0) for point in response],
            ids=[str(point.id) for point in response],
        )


def _choose_dense_name(info: qm.CollectionInfo) -> str:
    """Return the name of a collection's dense vectors: ours if there is one, or else the only one.

    The retriever finds the unnamed one by itself.
    """
    names = sorted(dense_vectors(info))
    if DENSE_VECTOR in names or len(names) != 1 or not names[0]:
        return DENSE_VECTOR
    return names[0]
