"""An old collection as LlamaIndex's stock store makes it, and its migration to a FakeEmbedder."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.schema import MetadataMode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.utils import metadata_dict_to_node
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models as qm

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.migration.dual_store import DualWritingStore
from unified_embeddings.migration.journal import Journal
from unified_embeddings.migration.opening import describe_vectors
from unified_embeddings.migration.record import MigrationRecord
from unified_embeddings.stores.opening import Client, async_view, make_thread_safe

ALIAS, SOURCE, TARGET = "docs", "docs-old", "docs-new"
OLD_DIMENSION = 8


def node_id(number: int) -> str:
    """Return the id of the node of a number; the ids' order is not the numbers'."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, str(number)))


def make_node(number: int, text: str, document: str | None = None) -> TextNode:
    """Return a node with an old embedding, as an application adds it."""
    node = TextNode(id_=node_id(number), text=text, metadata={"page": number})
    if document is not None:
        node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=document)
    node.embedding = old_vector(text)
    return node


def old_vector(text: str) -> list[float]:
    """Return the old model's vector of a text: anything of unit length."""
    chance = np.random.default_rng(len(text) * 1000 + sum(text.encode()))
    vector = chance.normal(size=OLD_DIMENSION)
    return [float(number) for number in vector / np.linalg.norm(vector)]


def old_store(client: Client, name: str = SOURCE) -> QdrantVectorStore:
    """Return the stock store of the old collection, dense only."""
    make_thread_safe(client)
    return QdrantVectorStore(name, client=client, aclient=async_view(client))  # type: ignore[arg-type]


def make_old_collection(client: Client, texts: Mapping[int, str]) -> QdrantVectorStore:
    """Store texts by number in the old collection, which gets its alias."""
    store = old_store(client)
    store.add([make_node(number, text, f"document {number % 5}") for number, text in texts.items()])
    let_alias_name(client, SOURCE)
    return store


def let_alias_name(client: Client, name: str) -> None:
    """Let the alias name a collection."""
    operation = qm.CreateAliasOperation(
        create_alias=qm.CreateAlias(collection_name=name, alias_name=ALIAS)
    )
    client.update_collection_aliases([operation])


def plan_by_hand(client: Client, folder: Path, embedder: TextEmbedder, **changes: Any) -> Journal:
    """Return the journal of a planned migration."""
    values: dict[str, Any] = {
        "alias": ALIAS,
        "place": {},
        "source": SOURCE,
        "target": TARGET,
        "model": {"model_choice": embedder.model_name},
        "model_name": embedder.model_name,
        "fingerprint": embedder.fingerprint,
        "source_vectors": describe_vectors(client.get_collection(SOURCE)),
    }
    return Journal.create(folder, MigrationRecord(**(values | changes)))


def dual_store(client: Client, folder: Path, embedder: TextEmbedder) -> DualWritingStore:
    """Return the dual-writing store over the old collection's stock store."""
    return DualWritingStore(old_store(client), folder, embedder=embedder)


def texts_of(client: Client, name: str) -> dict[str, str]:
    """Return id → text of all points of a collection."""
    points, _ = client.scroll(name, limit=100_000)
    return {
        str(point.id): json.loads((point.payload or {})["_node_content"])["text"]
        for point in points
    }


def assert_moved(
    client: Client, embedder: TextEmbedder | None = None, *, target: str = TARGET
) -> None:
    """Assert that both sides hold the same points, the target with the new model's vectors."""
    embedder = embedder or FakeEmbedder(model_name="new")
    source, _ = client.scroll(SOURCE, limit=100_000)
    moved, _ = client.scroll(target, limit=100_000, with_vectors=True)
    assert {str(point.id): point.payload for point in source} == {
        str(point.id): point.payload for point in moved
    }
    texts = [
        metadata_dict_to_node(point.payload or {}).get_content(MetadataMode.EMBED)
        for point in moved
    ]
    expected = embedder.encode_documents(texts, sparse=True)
    assert expected.dense is not None
    assert expected.sparse is not None
    for point, dense, sparse in zip(moved, expected.dense, expected.sparse, strict=True):
        vectors = point.vector
        assert isinstance(vectors, dict)
        assert np.allclose(np.array(vectors["text-dense"]), dense, atol=1e-5)
        stored = vectors["text-sparse-new"]
        assert isinstance(stored, qm.SparseVector)
        assert dict(zip(stored.indices, stored.values, strict=True)) == dict(
            zip(sparse.indices.tolist(), sparse.values.tolist(), strict=True)
        )
