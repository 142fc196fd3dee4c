"""Whether a collection's sparse vectors are a model's: a few of its texts are embedded again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from llama_index.core.schema import BaseNode, MetadataMode
from qdrant_client import models as qm

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.stores.copy_points import plain_id
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client

_PROBES = 3
"""Texts that are embedded again."""
_LEAST_COSINE = 0.9
"""Of a text's stored vector and its new one. The same model in int8 reaches 0.99; SPLADE and BM25
weigh other words, or have other ids for them."""
_FORMS = (MetadataMode.EMBED, MetadataMode.NONE, MetadataMode.ALL)
"""What may have been embedded: the text with the metadata meant for it, without, with all."""


def gives_sparse_vectors(
    client: Client,
    name: str,
    embedder: TextEmbedder,
    vector_name: str,
    nodes: Mapping[qm.ExtendedPointId, BaseNode],
) -> bool:
    """Tell whether a model gives the sparse vectors that a collection holds for a few of its texts.

    Args:
        client: Client of the collection's place.
        name: The collection's name.
        embedder: Gives sparse vectors.
        vector_name: Name of the collection's sparse vectors.
        nodes: Some of its points, by their ids; the shortest texts are compared.

    Returns:
        Whether most of the texts that have sparse vectors have the model's. False if none has any.

    Raises:
        StoreError: If Qdrant fails.
    """
    by_id = {str(plain_id(point_id)): node for point_id, node in nodes.items()}
    if not by_id:
        return False
    with store_errors(name, "reading sparse vectors"):
        records = client.retrieve(name, list(nodes), with_payload=False, with_vectors=[vector_name])
    stored: dict[str, Mapping[int, float]] = {}
    for record in records:
        vector = record.vector.get(vector_name) if isinstance(record.vector, dict) else None
        if isinstance(vector, qm.SparseVector) and vector.indices:
            weights = dict(zip(vector.indices, vector.values, strict=True))
            stored[str(plain_id(record.id))] = weights
    # No model cuts a short text.
    probes = sorted(stored, key=lambda key: len(by_id[key].get_content()))[:_PROBES]
    matching = [key for key in probes if _is_made_by(embedder, by_id[key], stored[key])]
    return len(matching) > len(probes) / 2


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
