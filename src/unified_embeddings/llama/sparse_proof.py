"""Whether a collection's sparse vectors are a model's: a few of its texts are embedded again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from llama_index.core.schema import BaseNode, MetadataMode
from qdrant_client import models as qm

from unified_embeddings.embedders.base import TextEmbedder

POINTS_READ = 10
"""Points that are looked at."""
_PROBES = 3
"""Texts that are embedded again."""
_LEAST_COSINE = 0.9
"""Of a text's stored vector and its new one. The same model in int8 reaches 0.99; SPLADE and BM25
weigh other words, or have other ids for them."""
_FORMS = (MetadataMode.EMBED, MetadataMode.NONE, MetadataMode.ALL)
"""What may have been embedded: the text with the metadata meant for it, without, with all."""


def gives_sparse_vectors(
    embedder: TextEmbedder, vector_name: str, probes: Sequence[tuple[qm.Record, BaseNode]]
) -> bool:
    """Tell whether a model gives the sparse vectors that a collection holds for a few of its texts.

    Args:
        embedder: Gives sparse vectors.
        vector_name: Name of the collection's sparse vectors.
        probes: Some of its points with these vectors, and the nodes that they hold; the shortest
            texts are compared.

    Returns:
        Whether most of the texts that have sparse vectors have the model's. False if none has any.
    """
    stored: list[tuple[BaseNode, Mapping[int, float]]] = []
    for record, node in probes:
        vector = record.vector.get(vector_name) if isinstance(record.vector, dict) else None
        if isinstance(vector, qm.SparseVector) and vector.indices:
            stored.append((node, dict(zip(vector.indices, vector.values, strict=True))))
    stored.sort(key=lambda item: len(item[0].get_content()))  # no model cuts a short text
    shortest = stored[:_PROBES]
    matching = [node for node, weights in shortest if _is_made_by(embedder, node, weights)]
    return len(matching) > len(shortest) / 2


def _is_made_by(embedder: TextEmbedder, node: BaseNode, stored: Mapping[int, float]) -> bool:
    """Tell whether a vector is the model's for a text, in any form of it."""
    texts = _distinct(node.get_content(metadata_mode=form) for form in _FORMS)
    vectors = embedder.encode_documents(texts, dense=False, sparse=True).sparse or []
    return any(_cosine(stored, dict(vector)) >= _LEAST_COSINE for vector in vectors)


def _distinct(texts: Iterable[str]) -> Sequence[str]:
    return list(dict.fromkeys(texts))


def _cosine(first: Mapping[int, float], second: Mapping[int, float]) -> float:
    product = sum(weight * second.get(token, 0.0) for token, weight in first.items())
    norms = math.hypot(*first.values()) * math.hypot(*second.values())
    return product / norms if norms else 0.0
