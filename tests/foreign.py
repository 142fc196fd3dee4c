"""Collections that other software filled, for the tests of what is done with them."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from llama_index.core.schema import MetadataMode, TextNode
from llama_index.core.vector_stores.utils import node_to_metadata_dict
from qdrant_client import models as qm

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.stores.opening import Client

_WORDS = [
    "river",
    "stone",
    "market",
    "winter",
    "letter",
    "engine",
    "garden",
    "music",
    "bridge",
    "doctor",
    "summer",
    "island",
    "paper",
    "window",
    "travel",
    "kitchen",
    "soldier",
    "teacher",
    "forest",
    "copper",
    "silver",
    "harbour",
    "lesson",
    "mirror",
    "pocket",
    "planet",
    "rocket",
    "sailor",
    "shadow",
    "ticket",
    "valley",
    "village",
    "whisper",
    "yellow",
    "circle",
    "dragon",
    "farmer",
    "hunter",
    "jacket",
    "kettle",
    "ladder",
    "mountain",
    "needle",
    "orange",
    "pepper",
    "quarter",
    "rabbit",
    "saddle",
    "temple",
]


def make_texts(count: int, *, words: int = 12, seed: int = 0) -> list[str]:
    """Distinct English-looking texts."""
    chance = random.Random(seed)
    return [f"{' '.join(chance.choices(_WORDS, k=words)).capitalize()}." for _ in range(count)]


def make_nodes(texts: Sequence[str], **fields: Any) -> list[TextNode]:
    return [
        TextNode(id_=str(number), text=text, metadata={"title": f"Part {number % 7}"}, **fields)
        for number, text in enumerate(texts)
    ]


def langchain_payload(text: str, metadata: dict[str, Any] | None) -> dict[str, Any]:
    """A payload as langchain-qdrant 1.1.0 writes it."""
    return {"page_content": text, "metadata": metadata}


def haystack_payload(document_id: str, text: str | None, meta: dict[str, Any]) -> dict[str, Any]:
    """A payload as qdrant-haystack 13.1.0 writes it."""
    return {
        "id": document_id,
        "content": text,
        "blob": None,
        "meta": meta,
        "score": None,
        "sparse_embedding": None,
    }


def haystack_point_id(document_id: str) -> str:
    """The id that qdrant-haystack 13.1.0 gives to a document's point."""
    return str(uuid.uuid5(uuid.UUID("3896d314-1e95-4a3a-b45a-945f9f0b541d"), document_id))


def fill(
    client: Client,
    name: str,
    embedder: TextEmbedder,
    nodes: Sequence[TextNode],
    *,
    mode: MetadataMode = MetadataMode.EMBED,
    to_text: Callable[[str], str] = lambda text: text,
    sparse_by: TextEmbedder | None = None,
    dense_name: str = "text-dense",
    payloads: Sequence[dict[str, Any]] | None = None,
    distance: qm.Distance = qm.Distance.COSINE,
    **options: Any,
) -> None:
    """Make a collection as LlamaIndex's own store does: without a record of the model."""
    texts = [to_text(node.get_content(metadata_mode=mode)) for node in nodes]
    dense = embedder.encode(texts, role="document", heads=["dense"]).dense
    sparse = None if sparse_by is None else sparse_by.encode_documents(texts, dense=False).sparse
    params = qm.VectorParams(size=embedder.dimension, distance=distance)
    client.create_collection(
        name,
        vectors_config={dense_name: params} if dense_name else params,
        sparse_vectors_config=(
            {"text-sparse-new": qm.SparseVectorParams()} if sparse is not None else None
        ),
        **options,
    )
    points = []
    for number, node in enumerate(nodes):
        assert dense is not None
        vectors: Any = dense[number].tolist()
        if dense_name:
            vectors = {dense_name: vectors}
        if sparse is not None:
            vectors["text-sparse-new"] = qm.SparseVector.model_validate(sparse[number].to_qdrant())
        payload = node_to_metadata_dict(node) if payloads is None else payloads[number]
        points.append(qm.PointStruct(id=int(node.node_id), vector=vectors, payload=payload))
    client.upsert(name, points)
