"""Nodes as points: each with its payload and all vectors that the collection holds.

What lives here: a node's vectors by name, in batches that fit into memory and a request. What does
not: what a node becomes in the payload (`payloads`), and sending points (`fingerprinted_store`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from llama_index.core.schema import BaseNode, MetadataMode
from qdrant_client import models as qm

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.pooling import pool_rows
from unified_embeddings.errors import InputError
from unified_embeddings.llama.payloads import without_graph_ids
from unified_embeddings.llama.sparse_functions import SparseLists
from unified_embeddings.llama.stored_layout import StoredLayout
from unified_embeddings.stores.keyword_list import KEYWORD_VECTOR, keyword_vectors
from unified_embeddings.stores.request_sizes import split_by_size
from unified_embeddings.stores.stored_colbert import COLBERT_VECTOR, StoredColbert
from unified_embeddings.validation import require_vector

_LOG = logging.getLogger(__name__)

SparseFunction = Callable[[list[str]], SparseLists]


class SecondPass:
    """Says once that nodes ran through the model again, when they were added."""

    def __init__(self) -> None:
        self._is_said = False

    def note(self, nodes: int) -> None:
        """Say it, unless it was said."""
        if self._is_said:
            return
        self._is_said = True
        _LOG.warning(
            "Nodes run through the model as they are added (%d so far), for their ColBERT and "
            "sparse vectors: the cache does not hold those of the pass that gave the embeddings. "
            "Add fewer nodes at once (VectorStoreIndex(insert_batch_size=128)), or give the "
            "embedder a larger cache (cache=EmbeddingCache(max_bytes=...)). Said once.",
            nodes,
        )


@dataclass(frozen=True)
class PointLayout:
    """What a collection's points hold.

    Attributes:
        dense_name: Name of the dense vectors.
        sparse_name: Name of the sparse vectors.
        sparse_function: Gives them; None if points hold none.
        colbert: How points hold ColBERT vectors; None if they hold none.
        keywords: What counts words for a keyword list; None if there is none.
        payloads: How nodes are written, and what ids their points have.
        second_pass: Told of nodes whose ColBERT vectors were not in the cache.
    """

    dense_name: str
    sparse_name: str
    sparse_function: SparseFunction | None
    colbert: StoredColbert | None
    keywords: TextEmbedder | None
    payloads: StoredLayout
    second_pass: SecondPass


def build_batches(
    nodes: list[BaseNode], embedder: TextEmbedder, layout: PointLayout, batch_size: int
) -> Iterator[list[qm.PointStruct]]:
    """Yield the points of nodes; all nodes are checked before the first.

    They are one batch, unless they hold ColBERT vectors, which are large: then as many as fit into
    a request.

    Args:
        nodes: The nodes, with embeddings.
        embedder: Gives the other vectors.
        layout: Which vectors the points hold.
        batch_size: How many nodes are embedded at once.

    Raises:
        InputError: If a node has no embedding, or metadata that is not JSON.
    """
    payloads = layout.payloads.build_payloads(nodes)
    fields = layout.payloads.fields
    point_ids = [fields.to_point_id(node.node_id, index) for index, node in enumerate(nodes)]
    dense = _read_embeddings(nodes, embedder.dimension)
    every: list[qm.PointStruct] = []
    for start in range(0, len(nodes), batch_size):
        batch = slice(start, start + batch_size)
        vectors = _build_vectors(nodes[batch], dense[batch], embedder, layout)
        points = [
            # Not validated, which takes long for ColBERT vectors: all parts are checked.
            qm.PointStruct.model_construct(id=point_id, payload=payload, vector=named_vectors)
            for point_id, payload, named_vectors in zip(
                point_ids[batch], payloads[batch], vectors, strict=True
            )
        ]
        if layout.colbert is None:
            every += points
        else:
            yield from split_by_size(zip(points, vectors, strict=True))
    if every:
        yield every


def _read_embeddings(nodes: list[BaseNode], dimension: int) -> list[list[float]]:
    """Return the nodes' own embeddings, checked."""
    embeddings: list[list[float]] = []
    for index, node in enumerate(nodes):
        if node.embedding is None:
            raise InputError(f"node {node.node_id} has no embedding", index=index)
        vector = require_vector(
            node.embedding,
            dimension,
            subject=f"the embedding of node {node.node_id}",
            index=index,
        )
        embeddings.append(vector.tolist())
    return embeddings


def _build_vectors(
    nodes: list[BaseNode], dense: list[list[float]], embedder: TextEmbedder, layout: PointLayout
) -> list[dict[str, Any]]:
    """Return the vectors of each node by name."""
    vectors: list[dict[str, Any]] = [{layout.dense_name: own} for own in dense]
    embedded = map(without_graph_ids, nodes)
    texts = [node.get_content(metadata_mode=MetadataMode.EMBED) for node in embedded]
    if layout.colbert is not None and embedder.cache.max_bytes == 0:
        _embed_at_once(texts, vectors, embedder, layout, layout.colbert)
    else:
        _take_from_cache(texts, vectors, embedder, layout)
    if layout.keywords is not None:
        counted = keyword_vectors(layout.keywords, texts)
        for named_vectors, keyword_vector in zip(vectors, counted, strict=True):
            named_vectors[KEYWORD_VECTOR] = keyword_vector
    return vectors


def _take_from_cache(
    texts: list[str],
    vectors: list[dict[str, Any]],
    embedder: TextEmbedder,
    layout: PointLayout,
) -> None:
    """Add ColBERT and sparse vectors, which the pass that gave the embeddings left in the cache."""
    if layout.colbert is not None:
        # All that is asked for below, from the cache or from one pass.
        passes = embedder.stats().forwards
        embedder.encode_documents(texts)
        if embedder.stats().forwards > passes:
            layout.second_pass.note(len(texts))
        rows_of_texts = embedder.encode_pooled(texts, layout.colbert.pool)
        for named_vectors, rows in zip(vectors, rows_of_texts, strict=True):
            named_vectors[COLBERT_VECTOR] = rows.tolist()
    if layout.sparse_function is not None:
        sparse_lists = layout.sparse_function(texts)
        for named_vectors, indices, values in zip(vectors, *sparse_lists, strict=True):
            named_vectors[layout.sparse_name] = qm.SparseVector(indices=indices, values=values)


def _embed_at_once(
    texts: list[str],
    vectors: list[dict[str, Any]],
    embedder: TextEmbedder,
    layout: PointLayout,
    colbert: StoredColbert,
) -> None:
    """Add ColBERT and sparse vectors of one pass; the cache holds none for a second question."""
    has_sparse = layout.sparse_function is not None
    encoded = embedder.encode_documents(texts, dense=False, sparse=has_sparse, colbert=True)
    layout.second_pass.note(len(texts))
    for named_vectors, rows in zip(vectors, encoded.colbert or (), strict=True):
        named_vectors[COLBERT_VECTOR] = pool_rows(rows, colbert.pool).tolist()
    if encoded.sparse is not None:
        for named_vectors, weights in zip(vectors, encoded.sparse, strict=True):
            named_vectors[layout.sparse_name] = qm.SparseVector(
                indices=weights.indices.tolist(), values=weights.values.tolist()
            )
