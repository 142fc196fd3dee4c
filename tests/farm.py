"""A few passages about animals and the sea, in an index over a store of ours."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from llama_index.core import VectorStoreIndex
from llama_index.core.schema import NodeRelationship, NodeWithScore, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from unified_embeddings import UnifiedTextEmbedding
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
from unified_embeddings.llama.payloads import RETRIEVAL_KEY
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.stores.opening import Client

FOX = "Foxes hunt mice in the fields at night."
OWL = "Owls hunt mice in the barn at night."
COW = "Cows eat grass in the fields all day."
HEN = "Hens lay eggs in the barn in spring."
TIDE = "The tide comes in twice a day."
WHALE = "Whales eat krill in the cold sea."
PASSAGES = {
    FOX: {"kind": "wild", "year": 2021},
    OWL: {"kind": "wild", "year": 2023},
    COW: {"kind": "tame", "year": 2022},
    HEN: {"kind": "tame", "year": 2024},
    TIDE: {"kind": "sea", "year": 2020},
    WHALE: {"kind": "sea", "year": 2024},
}
"""Text → metadata. Each is of the document that its kind names."""


def farm_nodes() -> list[TextNode]:
    """Return the passages as nodes with ids that are always the same."""
    return [
        TextNode(
            id_=node_id(text),
            text=text,
            metadata=dict(metadata),
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=str(metadata["kind"]))},
        )
        for text, metadata in PASSAGES.items()
    ]


def node_id(text: str) -> str:
    """Return the id of a passage's node."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, text))


def farm_store(client: Client, embedder: TextEmbedder | None = None) -> FingerprintedStore:
    """Return a store that holds the passages."""
    embedder = embedder or FakeEmbedder()
    store = build_vector_store(embedder, "farm", client=client)
    store.add(UnifiedTextEmbedding(embedder)(farm_nodes()))
    return store


def index_over(store: FingerprintedStore, embedder: TextEmbedder | None = None) -> VectorStoreIndex:
    """Return an index over a store that is filled already."""
    model = UnifiedTextEmbedding(embedder or FakeEmbedder())
    return VectorStoreIndex.from_vector_store(store, embed_model=model)


def only(key: str, value: str | int, operator: FilterOperator) -> MetadataFilters:
    """Return a filter of one condition."""
    return MetadataFilters(filters=[MetadataFilter(key=key, value=value, operator=operator)])


TAME = only("kind", "tame", FilterOperator.EQ)


def texts_of(nodes: Sequence[NodeWithScore]) -> list[str]:
    """Return the texts of nodes, best first."""
    return [scored.node.get_content() for scored in nodes]


def answers_of(nodes: Sequence[NodeWithScore]) -> list[tuple[str, float | None, object]]:
    """Return all that a search tells of its nodes: text, score, and ranks in the lists."""
    return [
        (scored.node.get_content(), scored.score, scored.node.metadata.get(RETRIEVAL_KEY))
        for scored in nodes
    ]
