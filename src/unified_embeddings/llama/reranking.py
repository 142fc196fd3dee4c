"""Nodes ordered anew by the ColBERT score of their texts."""

from __future__ import annotations

from collections.abc import Sequence

from llama_index.core.schema import MetadataMode, NodeWithScore

from unified_embeddings import heads
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.fusion import sort_by_score
from unified_embeddings.search.ranking import TOLERANCE
from unified_embeddings.types import FloatArray


def rerank_nodes(
    embedder: TextEmbedder, question: FloatArray, nodes: Sequence[NodeWithScore]
) -> list[NodeWithScore]:
    """Return the nodes by the ColBERT score of their texts, best first.

    Nodes whose scores tie keep their order.

    Args:
        embedder: Has the ColBERT head.
        question: The question's ColBERT vectors, float32 (q, d).
        nodes: The candidates, best first.
    """
    texts = [scored.node.get_content(metadata_mode=MetadataMode.EMBED) for scored in nodes]
    documents = embedder.encode_documents(texts, dense=False, sparse=False, colbert=True).colbert
    assert documents is not None
    scored = [
        (place, heads.colbert_score(question, document)) for place, document in enumerate(documents)
    ]
    reranked = sort_by_score(scored, lambda place: place, absolute=TOLERANCE)
    return [NodeWithScore(node=nodes[place].node, score=score) for place, score in reranked]
